// Fills the queue, waits for "go" on standard input, drains it with runOnce, prints what it took.
// Arguments: URL ITEMS {"concurrency": …, "localQueue": …, "batchDelay": …} (null: as it comes).
"use strict";
const { runOnce, runMigrations } = require("graphile-worker");
const { Pool } = require("pg");

const [url, count, rawOptions] = process.argv.slice(2);
const items = Number(count);
const { concurrency, localQueue, batchDelay } = JSON.parse(rawOptions);

const worker = { connectionString: url };
if (concurrency != null) Object.assign(worker, { concurrentJobs: concurrency, maxPoolSize: 25 });
if (localQueue != null) worker.localQueue = { size: localQueue };
if (batchDelay != null) Object.assign(worker, { completeJobBatchDelay: batchDelay, failJobBatchDelay: batchDelay });

let done = 0;
const taskList = { noop: async () => { done += 1; } };
const options = { preset: { worker }, noHandleSignals: true };

async function fill(pool, number) {
  await pool.query(
    "SELECT count(*) FROM generate_series(1, $1::int) AS i, LATERAL graphile_worker.add_job('noop', json_build_object('id', i))",
    [number],
  );
}

async function main() {
  const pool = new Pool({ connectionString: url });
  await runMigrations(options);
  // A first small drain: what a process does once is not counted.
  await fill(pool, 100);
  await runOnce(options, taskList);
  done = 0;
  await fill(pool, items);
  console.log("filled");
  await new Promise((resolve) => process.stdin.once("data", resolve));
  const started = process.hrtime.bigint();
  await runOnce(options, taskList);
  const seconds = Number(process.hrtime.bigint() - started) / 1e9;
  const left = await pool.query("SELECT count(*)::int AS jobs FROM graphile_worker._private_jobs");
  await pool.end();
  console.log(JSON.stringify({ seconds, done, left: left.rows[0].jobs, node: process.version }));
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
