// @fal-ai/client 1.10.1, unmodified: realtime. Node 20 has no WebSocket of its own; browsers do.
import assert from "node:assert/strict";
import { test } from "node:test";
import WebSocket from "ws";
import { client, here, way } from "./here.mjs";

const live = "tester/live";

class Here extends WebSocket {
  constructor(url) {
    super(here(url.replace("wss:", "https:")).replace("https:", "wss:"));
    this.binaryType = "arraybuffer";
  }
}
globalThis.WebSocket = Here;

const fal = client();

async function tokenProvider(app) {
  const answer = await fetch(`${process.env.KEEPWARM_URL}/rest/tokens/realtime`, {
    method: "POST",
    headers: { authorization: `Key ${process.env.FAL_KEY}`, "content-type": "application/json" },
    body: JSON.stringify({ allowed_apps: [app], duration: 60 }),
  });
  return (await answer.json()).token;
}

function connected(options = {}) {
  const results = [];
  const errors = [];
  let wake = () => {};
  const connection = fal.realtime.connect(live, {
    connectionKey: crypto.randomUUID(),
    throttleInterval: 0,
    onResult: (result) => (results.push(result), wake()),
    onError: (error) => (errors.push(error), wake()),
    ...options,
  });
  const until = async (done) => {
    while (!done()) await new Promise((resolve) => (wake = resolve));
  };
  return { connection, results, errors, until };
}

test("results come back as msgpack, by the client's own token", async () => {
  const { connection, results, errors, until } = connected();
  connection.send({ text: "é" });
  await until(() => results.length === 1 || errors.length);
  connection.send({ text: "again" });
  await until(() => results.length === 2 || errors.length);
  assert.deepEqual(errors, []);
  assert.deepEqual(results.map((result) => result.text), ["é", "again"]);
  assert.deepEqual([...results[0].data], [...new TextEncoder().encode("é")]);
  connection.close();
});

if (way === "fetch") test("by a token provider, on another path, with a buffer", async () => {
  const { connection, results, errors, until } = connected({
    tokenProvider, tokenExpirationSeconds: 60, path: "/talk", maxBuffering: 5,
  });
  connection.send({ text: "one two" });
  await until(() => results.length === 2 || errors.length);
  assert.deepEqual(errors, []);
  assert.deepEqual(results.map((result) => result.word), ["one", "two"]);
  connection.close();
});

test("errors reach onError, and a wrong input does not end the session", async () => {
  const { connection, results, errors, until } = connected();
  connection.send({ seconds: "soon" });
  await until(() => errors.length === 1);
  assert.match(errors[0].message, /^INVALID_INPUT: seconds: /);
  connection.send({ text: "better" });
  await until(() => results.length === 1);
  connection.send({ text: "fail" });
  await until(() => errors.length === 3);
  assert.equal(errors[1].message, "INTERNAL_ERROR: told to fail");
  assert.deepEqual([errors[2].status, errors[2].message], [1011, "Error closing the connection: told to fail"]);
  connection.close();
});
