-- Statements on data_flow_stuck_threads: timed-out runs whose thread lives on. (data_flows.sql explains the format.)

-- name: add_stuck_thread(run_id, runner_id)!
-- Note that a timed-out run's thread lives on, before its end is recorded. 0: the run or the runner is gone.
INSERT INTO data_flow_stuck_threads (run_id, data_flow_id, runner_id)
SELECT run.id, run.data_flow_id, runner.id
FROM data_flow_runs AS run, data_flow_runners AS runner
WHERE run.id = :run_id::bigint AND runner.id = :runner_id::uuid
ON CONFLICT (run_id) DO NOTHING;

-- name: remove_stuck_thread(run_id)!
-- The thread has ended after all.
DELETE FROM data_flow_stuck_threads WHERE run_id = :run_id::bigint;
