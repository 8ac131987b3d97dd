// Reads commands from standard input, a line each, and answers each with a line of JSON, until the input ends:
//   fill N   add N jobs                       {"filled": N}
//   drain    do them all with runOnce         {"seconds": …, "done": … since the start, "left": …}
// Arguments: URL {"concurrency": …, "localQueue": …, "batchDelay": …} (null: as it comes).
"use strict";
const readline = require("node:readline");
const { runOnce, runMigrations } = require("graphile-worker");
const { Pool } = require("pg");

const [url, rawOptions] = process.argv.slice(2);
const { concurrency, localQueue, batchDelay } = JSON.parse(rawOptions);

const worker = { connectionString: url };
if (concurrency != null) Object.assign(worker, { concurrentJobs: concurrency, maxPoolSize: 25 });
if (localQueue != null) worker.localQueue = { size: localQueue };
if (batchDelay != null) Object.assign(worker, { completeJobBatchDelay: batchDelay, failJobBatchDelay: batchDelay });

let done = 0;
const taskList = { noop: async () => { done += 1; } };
const options = { preset: { worker }, noHandleSignals: true };
const pool = new Pool({ connectionString: url });

async function fill(number) {
  await pool.query(
    "SELECT count(*) FROM generate_series(1, $1::int) AS i, LATERAL graphile_worker.add_job('noop', json_build_object('id', i))",
    [number],
  );
  return { filled: number };
}

async function drain() {
  const started = process.hrtime.bigint();
  await runOnce(options, taskList);
  const seconds = Number(process.hrtime.bigint() - started) / 1e9;
  const left = await pool.query("SELECT count(*)::int AS jobs FROM graphile_worker._private_jobs");
  return { seconds, done, left: left.rows[0].jobs };
}

async function main() {
  await runMigrations(options);
  // A first small drain: what a process does once is not counted.
  await fill(100);
  await drain();
  done = 0;
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [command, number] = line.split(" ");
    console.log(JSON.stringify(command === "fill" ? await fill(Number(number)) : await drain()));
  }
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
