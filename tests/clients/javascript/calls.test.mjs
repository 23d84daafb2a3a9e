// @fal-ai/client 1.10.1, unmodified: calls, the queue, streams and what they raise.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { test } from "node:test";
import { ApiError, ValidationError } from "@fal-ai/client";
import { client, way } from "./here.mjs";

const called = "tester/called";
const single = "tester/single";
const fal = client();

test("the client is the published one", async () => {
  const file = new URL("node_modules/@fal-ai/client/package.json", import.meta.url);
  assert.equal(JSON.parse(await readFile(file)).version, "1.10.1");
});

test("run", async () => {
  const { data, requestId } = await fal.run(called, { input: { text: "é" } });
  assert.deepEqual(data, { text: "é" });
  assert.match(requestId, /^[0-9a-f-]{36}$/);
});

for (const mode of ["polling", "streaming"]) {
  test(`subscribe by ${mode}, every log line once`, async () => {
    const states = new Set();
    let lines = [];
    const { data, requestId } = await fal.subscribe(called, {
      input: { text: mode, seconds: 0.4, lines: 3 },
      logs: true,
      mode,
      onQueueUpdate: (update) => {
        states.add(update.status);
        lines = (update.logs ?? []).map((line) => line.message);
      },
    });
    assert.deepEqual(data, { text: mode });
    assert.ok(requestId);
    assert.ok(states.has("COMPLETED"));
    assert.deepEqual(lines, [0, 1, 2].map((n) => `line ${n} of ${mode}`));
  });
}

test("submit, status, result, and a cancel that comes too late", async () => {
  const { request_id: requestId, status, response_url } = await fal.queue.submit(`${called}/`, { input: { text: "q" } });
  assert.equal(status, "IN_QUEUE");
  assert.ok(response_url.endsWith(requestId));
  const done = await fal.queue.subscribeToStatus(called, { requestId, pollInterval: 50 });
  assert.equal(done.status, "COMPLETED");
  assert.equal((await fal.queue.status(called, { requestId })).request_id, requestId);
  assert.deepEqual((await fal.queue.result(called, { requestId })).data, { text: "q" });
  await assert.rejects(fal.queue.cancel(called, { requestId }), (error) => {
    assert.deepEqual([error.status, error.body.status], [400, "ALREADY_COMPLETED"]);
    return true;
  });
});

test("cancel", async () => {
  const { request_id: requestId } = await fal.queue.submit(single, { input: { seconds: 30 } });
  await fal.queue.cancel(single, { requestId });
  const done = await fal.queue.subscribeToStatus(single, { requestId });
  assert.equal(done.error_type, "client_cancelled");
  await assert.rejects(fal.queue.result(single, { requestId }), (error) => error.status === 499);
});

test("a client's timeout cancels", async () => {
  let requestId;
  const calling = fal.subscribe(single, { input: { seconds: 30 }, timeout: 1000, onEnqueue: (id) => (requestId = id) });
  await assert.rejects(calling, /timed out/);
  const done = await fal.queue.subscribeToStatus(single, { requestId });
  assert.equal(done.error_type, "client_cancelled");
});

test("a start timeout is the caller's own", async () => {
  const holding = await fal.queue.submit(single, { input: { seconds: 30 } });
  while ((await fal.queue.status(single, { requestId: holding.request_id })).status === "IN_QUEUE");
  await assert.rejects(fal.subscribe(single, { input: {}, startTimeout: 1.5 }), (error) => {
    assert.ok(error instanceof ApiError);
    assert.deepEqual([error.status, error.isUserTimeout], [504, true]);
    return true;
  });
  await fal.queue.cancel(single, { requestId: holding.request_id });
});

test("stream", async () => {
  const stream = await fal.stream(called, { input: { text: "one two three" } });
  const words = [];
  for await (const event of stream) words.push(event.word);
  assert.deepEqual(words, ["one", "two", "three"]);
  assert.deepEqual(await stream.done(), { word: "three" });
  assert.match(stream.requestId, /^[0-9a-f-]{36}$/);
});

// The other ways do not see this request.
if (way === "fetch" || way === "names") test("a stream by token, as a browser reads it", async () => {
  const browser = client({ credentials: undefined });
  const tokenProvider = async () => {
    const answer = await fetch(`${process.env.KEEPWARM_URL}/rest/tokens/realtime`, {
      method: "POST",
      headers: { authorization: `Key ${process.env.FAL_KEY}`, "content-type": "application/json" },
      body: JSON.stringify({ allowed_apps: [called], duration: 60 }),
    });
    return (await answer.json()).token;
  };
  const stream = await browser.stream(called, { input: { text: "a b" }, connectionMode: "client", tokenProvider });
  const words = [];
  for await (const event of stream) words.push(event.word);
  assert.deepEqual(words, ["a", "b"]);
});

test("validation errors name their fields", async () => {
  await assert.rejects(fal.run(called, { input: { seconds: "soon" } }), (error) => {
    assert.ok(error instanceof ValidationError);
    assert.equal(error.getFieldErrors("seconds").length, 1);
    assert.match(error.requestId, /^[0-9a-f-]{36}$/);
    return true;
  });
});

for (const [name, id, options, status] of [
  ["an unknown app", "tester/nobody", {}, 404],
  ["a wrong key", called, { credentials: "not:valid" }, 401],
]) {
  test(`${name} is said with its status`, async () => {
    await assert.rejects(client(options).run(id, { input: {} }), (error) => {
      assert.ok(error instanceof ApiError);
      assert.equal(error.status, status);
      assert.ok(error.body.detail);
      assert.ok(error.requestId);
      return true;
    });
  });
}

// The client's own pauses make the repeated call slow, and they are the same whichever way it goes.
const repeated = way === "middleware" ? [[502, 4]] : [];
for (const [status, tries] of [[400, 1], [409, 1], [422, 1], [500, 1], ...repeated]) {
  test(`an app that answers ${status} is asked ${tries} times`, async () => {
    const tag = `${way}-${status}`;
    await assert.rejects(fal.run(`${called}/fail`, { input: { status, tag } }), (error) => error.status === status);
    assert.deepEqual((await fal.run(`${called}/tries`, { input: { status, tag } })).data, { tries });
  });
}
