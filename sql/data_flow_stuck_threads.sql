-- Statements on data_flow_stuck_threads: runs given up whose thread lives on. (data_flows.sql explains the format.)

-- name: add_stuck_thread(run_id, runner_id)!
-- Note that the thread of a run that is given up lives on, before its end is recorded. 0: the run or the runner is
-- gone, or it is noted.
INSERT INTO data_flow_stuck_threads (run_id, data_flow_id, runner_id, is_by_hand)
SELECT run.id, run.data_flow_id, runner.id, false
FROM data_flow_runs AS run, data_flow_runners AS runner
WHERE run.id = :run_id::bigint AND runner.id = :runner_id::uuid
ON CONFLICT (run_id, is_by_hand) DO NOTHING;

-- name: remove_stuck_thread(run_id)!
-- The thread has ended after all.
DELETE FROM data_flow_stuck_threads WHERE run_id = :run_id::bigint;
