-- Statements on heartbeats: the beginning and the end of each. (data_flows.sql explains the format.)

-- name: open_heartbeat(client_ip, runner_id, run_tolerance, runner_ttl)^
-- Write the heartbeat's row. Where there is nothing to do it is finished at once, and this is the only statement of the
-- heartbeat: so it only asks four questions, each answered by the first entry of an index or by a table of a few rows.
-- may_have_work says that one answer was yes, and needs_repair that it was one of the last two. first_turn is the
-- oldest turn that may be due, and next_due_at the next one to come, where this is the only statement.
WITH asked AS MATERIALIZED (
    SELECT
        -- 1. May a flow be due? Not data_flow_is_due: this much of it the first entry of data_flows_due answers,
        -- and the rest would have it read on past every flow that runs.
        (
            SELECT flow.next_run_at
            FROM data_flows AS flow
            WHERE flow.enabled
                AND flow.next_run_at <= statement_timestamp() + :run_tolerance::float8 * interval '1 second'
            ORDER BY flow.next_run_at
            LIMIT 1
        ) AS first_turn,
        -- 2. Was a run asked for?
        EXISTS (SELECT FROM data_flow_runs AS run WHERE run.status = 'pending') AS is_requested,
        -- 3. Is a flow's last_run_status stale?
        EXISTS (SELECT FROM data_flow_stale_statuses)
        -- 4. Is a runner dead? Its runs and heartbeats go on in the tables alone.
        OR EXISTS (
            SELECT FROM data_flow_runners AS runner
            WHERE data_flow_runner_is_dead(runner.last_seen_at, :runner_ttl::float8)
        ) AS needs_repair
),
opened AS (
    INSERT INTO heartbeats (client_ip, runner_id, received_at, finished_at)
    SELECT
        :client_ip::inet,
        :runner_id::uuid,
        statement_timestamp(),
        CASE
            WHEN asked.first_turn IS NULL AND NOT asked.is_requested AND NOT asked.needs_repair
            THEN statement_timestamp()
        END
    FROM asked
    RETURNING id, received_at, finished_at
)
SELECT
    opened.id AS heartbeat_id,
    opened.received_at AS as_of,
    opened.finished_at IS NULL AS may_have_work,
    asked.needs_repair,
    asked.first_turn,
    CASE
        WHEN opened.finished_at IS NOT NULL
        THEN (
            SELECT min(flow.next_run_at)
            FROM data_flows AS flow
            WHERE flow.enabled AND flow.next_run_at > statement_timestamp()
        )
    END AS next_due_at,
    -- Where there is work, this commit need not wait for the disk: the claim's does, and takes it along.
    CASE WHEN opened.finished_at IS NULL THEN set_config('synchronous_commit', 'off', true) END AS synchronous_commit
FROM opened, asked;

-- name: count_due(heartbeat_id, as_of, first_turn, run_tolerance)
-- Count what was due or asked for when a heartbeat began, each flow once; write that in its row, and return it.
WITH due AS (
    SELECT count(*) AS flows
    FROM data_flows_waiting AS flow
    WHERE flow.next_run_at >= :first_turn::timestamptz
        AND data_flow_is_due(flow.next_run_at, flow.run_interval, :as_of::timestamptz, :run_tolerance::float8)
),
requested AS (
    SELECT count(*) AS flows
    FROM data_flow_runs AS run
    WHERE run.status = 'pending'
        AND run.created_at <= :as_of::timestamptz
        AND NOT EXISTS (
            SELECT FROM data_flow_stuck_threads AS stuck WHERE stuck.data_flow_id = run.data_flow_id OFFSET 0
        )
),
counted AS (
    UPDATE heartbeats AS beat
    SET flows_due = due.flows + requested.flows
    FROM due, requested
    WHERE beat.id = :heartbeat_id::bigint
)
SELECT due.flows + requested.flows AS flows_due FROM due, requested;

-- name: answer_heartbeat(heartbeat_id, is_finished, triggered, succeeded, failed, as_of, first_turn, run_tolerance)^
-- Write a heartbeat's counts, and with is_finished its end; say how many of the flows that were due or asked for nobody
-- has started yet, and when the next one is due.
WITH written AS (
    UPDATE heartbeats AS beat
    SET flows_triggered = :triggered::integer,
        flows_succeeded = :succeeded::integer,
        flows_failed = :failed::integer,
        finished_at = CASE WHEN :is_finished::boolean THEN greatest(clock_timestamp(), beat.received_at) END
    WHERE beat.id = :heartbeat_id::bigint
)
SELECT
    (
        SELECT count(*)
        FROM data_flows_waiting AS flow
        WHERE flow.next_run_at >= :first_turn::timestamptz
            AND data_flow_is_due(flow.next_run_at, flow.run_interval, :as_of::timestamptz, :run_tolerance::float8)
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

-- name: finish_heartbeat(heartbeat_id, triggered, succeeded, failed)!
-- Finish a heartbeat that was answered before its last run had ended. 0: the row was pruned.
UPDATE heartbeats
SET flows_triggered = :triggered::integer,
    flows_succeeded = :succeeded::integer,
    flows_failed = :failed::integer,
    finished_at = greatest(clock_timestamp(), received_at)
WHERE id = :heartbeat_id::bigint AND finished_at IS NULL;

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

-- name: seconds_since_heartbeat()$
-- How long ago the newest heartbeat came, of whichever process. Null: there was none.
SELECT extract(epoch FROM statement_timestamp() - beat.received_at)::float8
FROM heartbeats AS beat
ORDER BY beat.id DESC
LIMIT 1;

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
