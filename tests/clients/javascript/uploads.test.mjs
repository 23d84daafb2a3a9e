// Uploads of @fal-ai/client 1.10.1, whole and in parts, and files given to a call.
import assert from "node:assert/strict";
import { test } from "node:test";
import { client } from "./here.mjs";

const fal = client();

test("a small file", async () => {
  const url = await fal.storage.upload(new File(["some text"], "notes.txt", { type: "text/plain" }));
  assert.ok(url.startsWith(`${process.env.KEEPWARM_URL}/cdn/files/`));
  assert.ok(url.endsWith("/notes.txt"));
  const got = await fetch(url);
  assert.equal(await got.text(), "some text");
  assert.equal(got.headers.get("content-type"), "text/plain; charset=utf-8");
});

test("a blob without name or type", async () => {
  const got = await fetch(await fal.storage.upload(new Blob([new Uint8Array(10)])));
  assert.equal((await got.arrayBuffer()).byteLength, 10);
  assert.equal(got.headers.get("content-type"), "application/octet-stream");
});

test("a file with a lifecycle", async () => {
  const file = new File(["mine"], "mine.txt", { type: "text/plain" });
  const lifecycle = { expiresIn: "1h", initialAcl: { default: "hide" } };
  const url = await fal.storage.upload(file, { lifecycle });
  assert.equal((await fetch(url)).status, 404);
  const owner = { headers: { authorization: `Key ${process.env.FAL_KEY}` } };
  assert.equal(await (await fetch(url, owner)).text(), "mine");
});

test("a file of 91 MB goes in parts", async () => {
  const part = new Uint8Array(1024 * 1024).map((_, index) => index % 251);
  const file = new File(Array(91).fill(part), "large.bin", { type: "application/x-large" });
  const got = await fetch(await fal.storage.upload(file));
  const bytes = new Uint8Array(await got.arrayBuffer());
  assert.equal(bytes.length, file.size);
  assert.ok(Buffer.from(bytes.buffer, 90 * part.length, part.length).equals(Buffer.from(part.buffer)));
  assert.equal(got.headers.get("content-type"), "application/x-large");
});

test("a blob in an input is uploaded, and the app fetches it", async () => {
  const input = { file: new Blob([new Uint8Array(5000)], { type: "application/octet-stream" }) };
  assert.equal((await fal.run("tester/called/measure", { input })).data.size, 5000);
  assert.equal((await fal.subscribe("tester/called/measure", { input })).data.size, 5000);
});

test("what a call makes is kept as its caller wants", async () => {
  const storageSettings = { expiresIn: "1h", initialAcl: { default: "forbid" } };
  for (const call of [fal.run, fal.subscribe]) {
    const { data } = await call("tester/called/write", { input: { text: "made" }, storageSettings });
    assert.equal((await fetch(data.file.url)).status, 403);
    const owner = { headers: { authorization: `Key ${process.env.FAL_KEY}` } };
    assert.equal(await (await fetch(data.file.url, owner)).text(), "made");
  }
  const { data } = await fal.run("tester/called/write", { input: { text: "open" } });
  const got = await fetch(data.file.url);
  assert.equal(await got.text(), "open");
  assert.match(got.headers.get("cache-control"), /immutable/);
});
