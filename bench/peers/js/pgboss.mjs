// pg-boss: `load` or `work`. Large batches, one after the other as long as they come full.

import { PgBoss } from "pg-boss";
import { chunks, keepTelling, body, order, perform } from "./job.mjs";

const BATCH = 500;
const CHUNK = 1000;

const boss = new PgBoss({ connectionString: order.database_url, max: 10 });
boss.on("error", (error) => console.error(error.message));

async function load() {
  await boss.start();
  await boss.createQueue("job");
  for (const numbers of chunks(CHUNK)) {
    await boss.insert(
      "job",
      numbers.map((number) => ({ data: { number, body: body(number) } })),
    );
  }
  await boss.stop();
}

async function work() {
  keepTelling();
  await boss.start();
  const options = { batchSize: BATCH, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5, localConcurrency: 4 };
  await boss.work("job", options, (jobs) => Promise.all(jobs.map((job) => perform(job.data))));
}

await { load, work }[process.argv[2]]();
