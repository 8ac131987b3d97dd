-- Statements on heartbeats: the beginning and the end of each. (data_flows.sql explains the format.)

-- name: open_heartbeat(client_ip, runner_id, run_tolerance, runner_ttl)^
-- Write the heartbeat's row. Where there is nothing to do it is finished at once, and this is the only statement of the
-- heartbeat: so it only asks four questions, each answered by the first entry of an index. may_have_work says that
-- one answer was yes, and that count_due must look closer.
INSERT INTO heartbeats (client_ip, runner_id, received_at, finished_at)
SELECT
    :client_ip::inet,
    :runner_id::uuid,
    statement_timestamp(),
    CASE
        WHEN NOT (
            -- 1. May a flow be due? Not data_flow_is_due: this much of it the first entry of data_flows_due answers,
            -- and the rest would have it read on past every flow that runs.
            EXISTS (
                SELECT FROM data_flows AS flow
                WHERE flow.enabled
                    AND flow.next_run_at <= statement_timestamp() + :run_tolerance::float8 * interval '1 second'
            )
            -- 2. Was a run asked for?
            OR EXISTS (SELECT FROM data_flow_runs AS run WHERE run.status = 'pending')
            -- 3. Is a flow's last_run_status stale?
            OR EXISTS (SELECT FROM data_flow_stale_statuses)
            -- 4. Is a runner dead? Its runs and heartbeats go on in the tables alone.
            OR EXISTS (
                SELECT FROM data_flow_runners AS runner
                WHERE data_flow_runner_is_dead(runner.last_seen_at, :runner_ttl::float8)
            )
        )
        THEN statement_timestamp()
    END
RETURNING
    id AS heartbeat_id,
    received_at AS as_of,
    finished_at IS NULL AS may_have_work,
    (
        SELECT min(flow.next_run_at)
        FROM data_flows AS flow
        WHERE flow.enabled AND flow.next_run_at > statement_timestamp()
    ) AS next_due_at;

-- name: count_due(heartbeat_id, run_tolerance, runner_ttl)^
-- Count what was due when a heartbeat began, and finish it if that is nothing. needs_repair says that runs of the dead,
-- heartbeats of the dead or flows with a stale status are waiting to be put right; then count again, for flows of the
-- dead may be due now. No row: the heartbeat was deleted.
WITH beat AS (
    SELECT beat.id, beat.received_at AS as_of FROM heartbeats AS beat WHERE beat.id = :heartbeat_id::bigint
),
due AS (
    SELECT count(*) AS flows
    FROM data_flows_waiting AS flow, beat
    WHERE data_flow_is_due(flow.next_run_at, flow.run_interval, beat.as_of, :run_tolerance::float8)
),
requested AS (
    SELECT count(*) AS flows
    FROM data_flow_runs AS run, beat
    WHERE run.status = 'pending'
        AND run.created_at <= beat.as_of
        AND NOT EXISTS (
            SELECT FROM data_flow_stuck_threads AS stuck WHERE stuck.data_flow_id = run.data_flow_id OFFSET 0
        )
),
living AS (
    SELECT runner.id
    FROM data_flow_runners AS runner
    WHERE NOT data_flow_runner_is_dead(runner.last_seen_at, :runner_ttl::float8)
)
UPDATE heartbeats AS opened
SET flows_due = due.flows + requested.flows,
    finished_at = CASE WHEN due.flows + requested.flows = 0 THEN clock_timestamp() END
FROM due, requested, beat
WHERE opened.id = beat.id
RETURNING
    opened.flows_due,
    EXISTS (SELECT FROM data_flow_runners AS runner WHERE runner.id NOT IN (SELECT living.id FROM living))
    OR EXISTS (
        SELECT FROM data_flow_runs AS run
        WHERE run.status = 'in_progress' AND run.runner_id NOT IN (SELECT living.id FROM living)
    )
    OR EXISTS (SELECT FROM data_flow_stale_statuses) AS needs_repair;

-- name: finish_heartbeat(heartbeat_id, finished, flows_triggered, flows_succeeded, flows_failed)!
-- Write a heartbeat's counts; finished says that its last run has ended. 0: the row was pruned.
UPDATE heartbeats
SET flows_triggered = :flows_triggered::integer,
    flows_succeeded = :flows_succeeded::integer,
    flows_failed = :flows_failed::integer,
    finished_at = CASE WHEN :finished::boolean THEN greatest(clock_timestamp(), received_at) END
WHERE id = :heartbeat_id::bigint AND finished_at IS NULL;

-- name: what_remains(as_of, run_tolerance)^
-- How many flows that were due or asked for at a moment nobody has started yet, and when the next one is due.
SELECT
    (
        SELECT count(*)
        FROM data_flows_waiting AS flow
        WHERE data_flow_is_due(flow.next_run_at, flow.run_interval, :as_of::timestamptz, :run_tolerance::float8)
    ) + (
        SELECT count(*)
        FROM data_flow_runs AS run
        WHERE run.status = 'pending'
            AND run.created_at <= :as_of::timestamptz
            AND NOT EXISTS (
                SELECT FROM data_flow_stuck_threads AS stuck WHERE stuck.data_flow_id = run.data_flow_id OFFSET 0
            )
    ) AS flows_remaining,
    (
        SELECT min(flow.next_run_at)
        FROM data_flows AS flow
        WHERE flow.enabled AND flow.next_run_at > statement_timestamp()
    ) AS next_due_at;

-- name: finish_heartbeats_of_dead_runners(runner_ttl)!
-- Finish the heartbeats whose process died, with what their runs say. Run it after fail_runs_of_dead_runners.
WITH dead AS MATERIALIZED (
    SELECT beat.id
    FROM heartbeats AS beat
    LEFT JOIN data_flow_runners AS runner ON runner.id = beat.runner_id
    WHERE beat.finished_at IS NULL
        AND (runner.id IS NULL OR data_flow_runner_is_dead(runner.last_seen_at, :runner_ttl::float8))
    LIMIT 100
    FOR UPDATE OF beat SKIP LOCKED
)
UPDATE heartbeats AS beat
SET finished_at = greatest(clock_timestamp(), beat.received_at),
    flows_triggered = counted.triggered,
    flows_succeeded = counted.succeeded,
    flows_failed = counted.failed
FROM dead
CROSS JOIN LATERAL (
    SELECT
        count(*) AS triggered,
        count(*) FILTER (WHERE run.status = 'success') AS succeeded,
        count(*) FILTER (WHERE run.status = 'failed') AS failed
    FROM data_flow_runs AS run
    WHERE run.heartbeat_id = dead.id
) AS counted
WHERE beat.id = dead.id;

-- name: prune_heartbeats(retention_days, max_rows)!
-- Delete finished heartbeats older than the retention, from among the max_rows oldest.
WITH oldest AS MATERIALIZED (
    SELECT beat.id, beat.finished_at
    FROM heartbeats AS beat
    ORDER BY beat.id
    LIMIT :max_rows::bigint
)
DELETE FROM heartbeats AS beat
USING oldest
WHERE beat.id = oldest.id
    AND oldest.finished_at < statement_timestamp() - :retention_days::float8 * interval '1 day';
