-- Statements on data_flow_runners: who is alive. (data_flows.sql explains the format.)

-- name: register_runner(runner_id, host, pid)!
-- A process begins.
INSERT INTO data_flow_runners (id, host, pid, started_at, last_seen_at)
VALUES (:runner_id::uuid, :host::text, :pid::integer, statement_timestamp(), statement_timestamp());

-- name: renew_runner(runner_id)!
-- A sign of life. 0: this runner was given up for dead in the meantime, and must begin anew under another id.
UPDATE data_flow_runners
SET last_seen_at = statement_timestamp()
WHERE id = :runner_id::uuid;

-- name: unregister_runner(runner_id)!
-- A process ends, with all its runs recorded.
DELETE FROM data_flow_runners WHERE id = :runner_id::uuid;

-- name: remove_dead_runners(runner_ttl)!
-- Forget runners that are dead and have no live run. Run it after fail_runs_of_dead_runners. One whose row is locked
-- waits for the next time: no heartbeat may wait for whoever looks at it.
WITH dead AS MATERIALIZED (
    SELECT runner.id
    FROM data_flow_runners AS runner
    WHERE data_flow_runner_is_dead(runner.last_seen_at, :runner_ttl::float8)
        AND NOT EXISTS (
            SELECT FROM data_flow_runs AS run
            WHERE run.status = 'in_progress' AND run.runner_id = runner.id
        )
    FOR UPDATE SKIP LOCKED
)
DELETE FROM data_flow_runners AS runner
USING dead
WHERE runner.id = dead.id;
