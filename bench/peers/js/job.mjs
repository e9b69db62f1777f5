// The job that every peer does, and how its process tells what it has done: see adapters/job.py.

import { createHmac } from "node:crypto";
import { openSync, renameSync, writeSync } from "node:fs";
import { Agent, request } from "undici";

export const order = JSON.parse(process.env.BENCH_PEER);

const KEY = Buffer.from("bench-key-of-thirty-two-bytes-00");
const BODY_BYTES = 1000;
const CONNECTIONS = 64;
const TELL_MS = 5;

const dispatcher = new Agent({ connections: CONNECTIONS, pipelining: 1 });

export function body(number) {
  const bare = JSON.stringify({ id: number, note: "" }).length;
  return JSON.stringify({ id: number, note: "x".repeat(BODY_BYTES - bare) });
}

// The numbers from 1 to the last job, in chunks.
export function* chunks(size) {
  for (let first = 1; first <= order.jobs; first += size) {
    const length = Math.min(size, order.jobs - first + 1);
    yield Array.from({ length }, (_, index) => first + index);
  }
}

async function post({ number, body }) {
  const id = `msg_${number}`;
  const timestamp = String(Math.floor(Date.now() / 1000));
  const mac = createHmac("sha256", KEY).update(`${id}.${timestamp}.${body}`).digest("base64");
  const answer = await request(order.post_url, {
    dispatcher,
    method: "POST",
    body,
    headers: {
      "content-type": "application/json",
      "webhook-id": id,
      "webhook-timestamp": timestamp,
      "webhook-signature": `v1,${mac}`,
    },
  });
  await answer.body.dump();
  if (answer.statusCode < 200 || answer.statusCode > 299) {
    throw new Error(`status ${answer.statusCode}`);
  }
  done();
}

async function noop() {
  done();
}

export const perform = order.kind === "webhook" ? post : noop;

// A write for each job would cost what is measured; one in 5 ms, and a last one by a timer, does not.
const stamp = new Float64Array(2);
let file = null;
let told = 0;
let toldAt = 0;

function done() {
  stamp[0] += 1;
  stamp[1] = Date.now() / 1000;
  if (stamp[1] * 1000 - toldAt >= TELL_MS) tell();
}

function tell() {
  if (told === stamp[0]) return;
  if (file === null) {
    const path = `${order.stamps}/${process.pid}`;
    file = openSync(`${path}.new`, "w");
    writeSync(file, Buffer.alloc(16), 0, 16, 0);
    renameSync(`${path}.new`, `${path}.stamps`);
  }
  writeSync(file, new Uint8Array(stamp.buffer), 0, 16, 0);
  told = stamp[0];
  toldAt = Date.now();
}

export function keepTelling() {
  setInterval(tell, 2 * TELL_MS);
}
