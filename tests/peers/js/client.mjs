// supabase-js, driven by a test: commands come as JSON lines on stdin, what happens goes out as JSON
// lines on stdout. The catching up after a gap is written as an application would write it.
import { createClient } from "@supabase/supabase-js";
import { createInterface } from "node:readline";
import WebSocket from "ws";

const [url, key] = process.argv.slice(2);
const supabase = createClient(url, key, {
  auth: { persistSession: false, autoRefreshToken: false },
  realtime: { transport: WebSocket, reconnectAfterMs: () => 50 },
});
const channels = new Map();
const tell = (event) => process.stdout.write(`${JSON.stringify(event)}\n`);

function join({ topic, config = {}, catchUp = false }) {
  const channel = supabase.channel(topic, { config });
  const seen = new Set();
  let joins = 0;
  let lastMs = Date.now();
  channel
    .on("broadcast", { event: "*" }, ({ event, payload, meta }) => {
      const id = meta?.id;
      if (id !== undefined && seen.has(id)) return;
      if (id !== undefined) seen.add(id);
      lastMs = Date.now();
      const bytes = payload instanceof ArrayBuffer ? [...new Uint8Array(payload)] : undefined;
      tell({ on: "broadcast", topic, event, payload: bytes ?? payload, meta });
    })
    .on("presence", { event: "sync" }, () => {
      tell({ on: "presence", topic, state: channel.presenceState() });
    })
    .subscribe((status, error) => {
      tell({ on: "status", topic, status, error: error?.message });
      if (status === "SUBSCRIBED" && ++joins > 1) tell({ on: "missed", topic });
      if (catchUp && status === "CHANNEL_ERROR") {
        // The library repeats the first `since` otherwise. A second earlier, for the clocks' sake.
        const replay = { since: lastMs - 1000 };
        channel.updateJoinPayload({ config: { ...config, broadcast: { replay } } });
      }
    });
  channels.set(topic, channel);
}

const commands = {
  auth: async ({ token }) => supabase.realtime.setAuth(token),
  join,
  send: async ({ topic, event, payload, bytes }) => {
    const body = bytes === undefined ? payload : new Uint8Array(bytes).buffer;
    const result = await channels.get(topic).send({ type: "broadcast", event, payload: body });
    tell({ on: "sent", topic, result });
  },
  httpSend: async ({ topic, event, payload, config = {} }) => {
    const channel = channels.get(topic) ?? supabase.channel(topic, { config });
    try {
      tell({ on: "httpSent", result: await channel.httpSend(event, payload) });
    } catch (error) {
      tell({ on: "httpSent", error: error.message });
    }
  },
  track: async ({ topic, payload }) => tell({ on: "tracked", result: await channels.get(topic).track(payload) }),
  leave: async ({ topic }) => tell({ on: "left", result: await supabase.removeChannel(channels.get(topic)) }),
};

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  await commands[command.do](command);
}
await supabase.removeAllChannels();
process.exit(0);
