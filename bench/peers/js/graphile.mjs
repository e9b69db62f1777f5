// graphile-worker: `load` or `work`. Local queue and batched completion, as its page on performance says.

import { Logger, makeWorkerUtils, run } from "graphile-worker";
import { chunks, keepTelling, body, order, perform } from "./job.mjs";

const CONCURRENT_JOBS = 64;
const LOCAL_QUEUE = 500;
const CHUNK = 1000;

const logger = new Logger(() => (level, message) => {
  if (level === "error") console.error(message);
});

async function load() {
  const utils = await makeWorkerUtils({ connectionString: order.database_url, logger });
  await utils.migrate();
  for (const numbers of chunks(CHUNK)) {
    await utils.addJobs(
      numbers.map((number) => ({ identifier: "job", payload: { number, body: body(number) } })),
    );
  }
  await utils.release();
}

async function work() {
  keepTelling();
  await run({
    preset: {
      worker: {
        connectionString: order.database_url,
        concurrentJobs: CONCURRENT_JOBS,
        maxPoolSize: 10,
        localQueue: { size: LOCAL_QUEUE },
        completeJobBatchDelay: 0,
        failJobBatchDelay: 0,
        logger,
      },
    },
    noHandleSignals: true,
    parsedCronItems: [],
    taskList: { job: perform },
  });
}

await { load, work }[process.argv[2]]();
