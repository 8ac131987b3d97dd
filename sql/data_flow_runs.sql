-- Statements on data_flow_runs: what became of the runs that a claim started. (data_flows.sql explains the format.)

-- name: record_outcomes(runner_id, run_ids, statuses, results, errors, backtraces)
-- End runs and update their flows' last_run_status, a batch at a time; returns the ids of those that were ended. A run
-- that is missing from the answer had been ended by another session, or is no longer this runner's: it is left as it
-- stands. Its transaction sets heartbeat.keeps_status, so that the trigger notes no stale status (service.sql).
-- A status that is null is success, and an array may be shorter than run_ids or empty: the rest is null.
WITH outcome AS MATERIALIZED (
    SELECT given.run_id, coalesce(given.status, 'success') AS status, given.result, given.error, given.backtrace
    FROM unnest(
        :run_ids::bigint[], :statuses::text[], :results::text[], :errors::text[], :backtraces::text[]
    ) AS given (run_id, status, result, error, backtrace)
),
ended AS (
    UPDATE data_flow_runs AS run
    SET status = outcome.status,
        ended_at = greatest(clock_timestamp(), run.started_at),
        result = outcome.result::jsonb,
        error = outcome.error,
        backtrace = outcome.backtrace
    FROM outcome
    WHERE run.id = ANY (ARRAY[outcome.run_id])
        AND run.runner_id = :runner_id::uuid
        AND run.ended_at IS NULL
    RETURNING run.id, run.data_flow_id, run.status
),
updated_flows AS (
    UPDATE data_flows AS flow
    SET last_run_status = ended.status
    FROM ended
    WHERE flow.id = ANY (ARRAY[ended.data_flow_id])
)
SELECT id AS run_id FROM ended;

-- name: record_outcomes_only(runner_id, run_ids, statuses, results, errors, backtraces)
-- The same past all locks and without the flows, for when another session has locked one of them, a run or the table.
-- The flows' last_run_status is stale then, and refresh_stale_statuses puts it right once they are free.
-- Returns each run that is still this runner's, and whether it was ended now; one that was not is locked.
WITH outcome AS MATERIALIZED (
    SELECT given.run_id, coalesce(given.status, 'success') AS status, given.result, given.error, given.backtrace
    FROM unnest(
        :run_ids::bigint[], :statuses::text[], :results::text[], :errors::text[], :backtraces::text[]
    ) AS given (run_id, status, result, error, backtrace)
),
live AS MATERIALIZED (
    SELECT run.id
    FROM outcome
    JOIN data_flow_runs AS run ON run.id = ANY (ARRAY[outcome.run_id])
    WHERE run.runner_id = :runner_id::uuid AND run.ended_at IS NULL
),
free AS MATERIALIZED (
    SELECT run.id
    FROM outcome
    JOIN data_flow_runs AS run ON run.id = ANY (ARRAY[outcome.run_id])
    WHERE run.runner_id = :runner_id::uuid AND run.ended_at IS NULL
    FOR UPDATE OF run SKIP LOCKED
),
ended AS (
    UPDATE data_flow_runs AS run
    SET status = outcome.status,
        ended_at = greatest(clock_timestamp(), run.started_at),
        result = outcome.result::jsonb,
        error = outcome.error,
        backtrace = outcome.backtrace
    FROM free
    JOIN outcome ON outcome.run_id = free.id
    WHERE run.id = ANY (ARRAY[free.id])
    RETURNING run.id
)
SELECT live.id AS run_id, EXISTS (SELECT FROM ended WHERE ended.id = live.id) AS is_ended
FROM live;

-- name: outcomes_on_record(runner_id, run_ids, statuses, errors)
-- Which runs have ended as this runner says: asked when the connection broke while they were recorded, so that nobody
-- knows whether the record was committed. A run that is missing from the answer was ended by somebody else, or deleted.
WITH outcome AS MATERIALIZED (
    SELECT given.run_id, coalesce(given.status, 'success') AS status, given.error
    FROM unnest(:run_ids::bigint[], :statuses::text[], :errors::text[]) AS given (run_id, status, error)
)
SELECT run.id AS run_id
FROM outcome
JOIN data_flow_runs AS run ON run.id = ANY (ARRAY[outcome.run_id])
WHERE run.runner_id = :runner_id::uuid
    AND run.status = outcome.status
    AND run.error IS NOT DISTINCT FROM outcome.error;

-- name: fail_runs_of_dead_runners(runner_ttl)
-- Fail the runs whose runner is dead (data_flow_runner_is_dead, in migrations/) or gone. Returns the first hundred, for
-- the log, and in each row how many there were. No row: everybody is alive.
WITH dead AS MATERIALIZED (
    SELECT
        run.id,
        CASE
            WHEN runner.id IS NULL THEN format('runner %%s is gone without having ended this run', run.runner_id)
            ELSE format(
                'runner %%s (%%s, pid %%s) died while this ran; it was last seen at %%s',
                runner.id, runner.host, runner.pid, runner.last_seen_at
            )
        END AS error
    FROM data_flow_runs AS run
    LEFT JOIN data_flow_runners AS runner ON runner.id = run.runner_id
    WHERE run.status = 'in_progress'
        AND (runner.id IS NULL OR data_flow_runner_is_dead(runner.last_seen_at, :runner_ttl::float8))
    FOR UPDATE OF run SKIP LOCKED
),
failed AS (
    UPDATE data_flow_runs AS run
    SET status = 'failed',
        ended_at = greatest(clock_timestamp(), run.started_at),
        error = dead.error
    FROM dead
    WHERE run.id = dead.id AND run.status = 'in_progress'
    RETURNING run.id, run.data_flow_id, run.heartbeat_id, run.error
)
SELECT failed.id, flow.name AS flow_name, failed.heartbeat_id, failed.error, count(*) OVER () AS runs_failed
FROM failed
JOIN data_flows AS flow ON flow.id = ANY (ARRAY[failed.data_flow_id])
ORDER BY failed.id
LIMIT 100;

-- name: live_run_ids(runner_id)
-- The runs that stand under a runner's name. No row: none.
SELECT run.id AS run_id
FROM data_flow_runs AS run
WHERE run.status = 'in_progress' AND run.runner_id = :runner_id::uuid;

-- name: get_run(run_id)^
-- One run with its flow's name. No row: it was deleted.
SELECT * FROM data_flow_run_log WHERE id = :run_id::bigint;

-- name: list_runs(max_rows)
-- The newest runs of all flows, newest first. No row: nothing ever ran.
SELECT * FROM data_flow_run_log ORDER BY id DESC LIMIT :max_rows::bigint;

-- name: list_runs_of_flow(data_flow_id, max_rows)
-- The newest runs of one flow, newest first. No row: it never ran.
SELECT * FROM data_flow_run_log WHERE data_flow_id = :data_flow_id::bigint ORDER BY id DESC LIMIT :max_rows::bigint;

-- name: prune_runs(retention_days, max_rows)!
-- Delete ended runs older than the retention, from among the max_rows oldest runs, so that it never reads further
-- than it deletes. Fewer than max_rows: the rest is younger.
WITH oldest AS MATERIALIZED (
    SELECT run.id, run.ended_at
    FROM data_flow_runs AS run
    ORDER BY run.id
    LIMIT :max_rows::bigint
)
DELETE FROM data_flow_runs AS run
USING oldest
WHERE run.id = oldest.id
    AND oldest.ended_at < statement_timestamp() - :retention_days::float8 * interval '1 day';
