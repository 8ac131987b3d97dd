-- Statements on data_flows: what is due, and the claim. Start reading here.
--
-- The format (aiosql): a statement begins with its name, its parameters in brackets, and what it returns:
--   (nothing) rows      ^ one row or none      $ one value or none      ! the number of rows changed
-- The comment under the name says what it does and what "no row" means. Parameters are written :name.
-- Do not write a colon and a word in a comment behind code, nor a bare percent sign anywhere: write it twice.
--
-- How a heartbeat works, statement by statement:
--
--   open_heartbeat (heartbeats.sql)          write its row: its beginning is as_of. Nothing to do? Then that was all.
--     where a runner is dead or a status stale, first:
--     fail_runs_of_dead_runners (data_flow_runs.sql), refresh_stale_statuses (data_flow_stale_statuses.sql),
--     finish_heartbeats_of_dead_runners (heartbeats.sql), remove_dead_runners (data_flow_runners.sql)
--   count_due (heartbeats.sql)               count what is due at as_of. It travels with the first claim.
--   claim (below)                            start some of what is due, again and again until there is no more.
--                                            It commits at once: no lock is held while a flow runs.
--     one of 100 runs and more: in a transaction with take_permit (service.sql), which lets in two at a time
--   record_outcomes (data_flow_runs.sql)     write what became of the runs that have ended since the last time;
--     where a row of theirs is locked instead: record_outcomes_only (data_flow_runs.sql)
--   answer_heartbeat (heartbeats.sql)        write its counts, finish its row, and say what nobody has started: in one
--                                            transaction with its last outcomes, or by itself at the time budget.
--   finish_heartbeat (heartbeats.sql)        where it was answered while runs went on: once the last one is recorded.
--
-- Beside heartbeats, each process that runs flows (a runner)
--
--     registers itself, renews that every third of its time to live, unregisters at its end (data_flow_runners.sql);
--     compares, at each renewal, live_run_ids (data_flow_runs.sql) with the runs that it knows, and fails the others;
--     runs the four statements for the dead and the stale as often, and prunes after heartbeats;
--     notes timed-out runs whose thread lives on, and strikes the note when it ends (data_flow_stuck_threads.sql);
--     starts one flow by hand with claim_flow (below).
--
-- Due is: enabled, no live run, no stuck thread, and next_run_at no later than run_tolerance seconds after as_of, or a
-- tenth of the flow's interval, if that is less. The condition stands once, in migrations/0008.define-due.sql: the view
-- data_flows_waiting and the function data_flow_is_due, which due_to_run, claim, count_due and answer_heartbeat use.
-- open_heartbeat asks less, and says why. A flow that changes meanwhile is decided by the claim, which locks it.
--
-- Two spellings keep the plans what they must be, one index probe a row, whatever the statistics said when they were
-- made: OFFSET 0 keeps a look-up from being turned into a join, and "id = ANY (ARRAY[other.id])" is a join that can
-- only be done by looking up the id. A plan made while a table was small compares every row with every row, for ever.
--
-- A configuration and a result travel as text, although they are jsonb (the connection sees to it): each is parsed by
-- itself, so that one that Python cannot read fails its own run and not the whole claim.

-- name: due_to_run(as_of, run_tolerance)
-- The flows that are due at a moment, oldest first. No row: nothing is due.
SELECT *
FROM data_flows_waiting AS flow
WHERE data_flow_is_due(flow.next_run_at, flow.run_interval, :as_of::timestamptz, :run_tolerance::float8)
ORDER BY flow.next_run_at;

-- name: claim(as_of, first_turn, run_tolerance, max_runs, heartbeat_id, runner_id, runner_ttl, async_classes, are_async)
-- Start up to max_runs runs, those asked for first, then the due flows, oldest first, and stamp their flows.
-- The flow's next turn is counted from as_of, the heartbeat's beginning, so that a flow claimed late in a long
-- heartbeat is not late for the next one; a hold (a later next_run_at) is left alone.
-- first_turn is what open_heartbeat found, and where to begin to read: before it the index holds nothing but the dead
-- entries of earlier turns, which somebody's open transaction (a dump, a forgotten psql) keeps there for hours.
-- are_async picks one kind: true for the flows whose class is among async_classes, false for the others, null: both.
-- No row: nothing is left to claim, or others have it locked, or this runner has been given up for dead.
WITH requested AS MATERIALIZED (
    SELECT run.id, run.data_flow_id
    FROM data_flow_runs AS run
    -- Joined for its lock too: the last step stamps the flow, and would wait there for another session's lock on its
    -- row. So the request is passed over instead, and found by a later heartbeat.
    JOIN data_flows AS flow ON flow.id = run.data_flow_id
    WHERE run.status = 'pending'
        AND run.created_at <= :as_of::timestamptz
        AND (:are_async::boolean IS NULL OR (flow.class_name = ANY (:async_classes::text[])) = :are_async::boolean)
        AND NOT EXISTS (SELECT FROM data_flow_stuck_threads AS stuck WHERE stuck.data_flow_id = flow.id OFFSET 0)
    ORDER BY run.id
    LIMIT :max_runs::bigint
    FOR UPDATE SKIP LOCKED
),
due AS MATERIALIZED (
    SELECT flow.id, flow.next_run_at
    FROM data_flows_waiting AS flow
    WHERE flow.next_run_at >= :first_turn::timestamptz
        AND data_flow_is_due(flow.next_run_at, flow.run_interval, :as_of::timestamptz, :run_tolerance::float8)
        AND (:are_async::boolean IS NULL OR (flow.class_name = ANY (:async_classes::text[])) = :are_async::boolean)
    ORDER BY flow.next_run_at
    LIMIT :max_runs::bigint - (SELECT count(*) FROM requested)
    FOR UPDATE SKIP LOCKED
),
-- One row while this runner is alive, else none, and with "FROM due, alive" nothing is started: others may have failed
-- its runs already, and what it claimed now would be failed by the next heartbeat while it runs.
alive AS MATERIALIZED (
    SELECT runner.id
    FROM data_flow_runners AS runner
    WHERE runner.id = :runner_id::uuid
        AND NOT data_flow_runner_is_dead(runner.last_seen_at, :runner_ttl::float8)
),
requested_started AS (
    UPDATE data_flow_runs AS run
    SET status = 'in_progress',
        heartbeat_id = :heartbeat_id::bigint,
        runner_id = alive.id,
        started_at = statement_timestamp()
    FROM requested, alive
    WHERE run.id = ANY (ARRAY[requested.id])
    RETURNING run.id, run.data_flow_id
),
due_started AS (
    INSERT INTO data_flow_runs (data_flow_id, heartbeat_id, runner_id, status, scheduled_for, started_at)
    SELECT due.id, :heartbeat_id::bigint, alive.id, 'in_progress', due.next_run_at, statement_timestamp()
    FROM due, alive
    -- A run of this flow was asked for a moment ago: that one stands.
    ON CONFLICT (data_flow_id) WHERE status IN ('pending', 'in_progress') DO NOTHING
    RETURNING id, data_flow_id
),
started AS MATERIALIZED (
    SELECT id, data_flow_id FROM requested_started
    UNION ALL
    SELECT id, data_flow_id FROM due_started
)
UPDATE data_flows AS flow
SET last_run_at = :as_of::timestamptz,
    last_run_status = 'in_progress',
    next_run_at = greatest(flow.next_run_at, :as_of::timestamptz + flow.run_interval * interval '1 second')
FROM started
WHERE flow.id = ANY (ARRAY[started.data_flow_id])
RETURNING
    started.id AS run_id,
    flow.name,
    flow.class_name,
    flow.configuration,
    flow.run_timeout;

-- name: claim_flow(name, runner_id)^
-- Start one flow now, whatever its schedule says; a run that somebody asked for is taken over.
-- No row: there is no such flow, or it has a live run or a stuck thread.
WITH wanted AS MATERIALIZED (
    SELECT flow.id
    FROM data_flows AS flow
    WHERE flow.name = :name::text
        AND NOT EXISTS (SELECT FROM data_flow_stuck_threads AS stuck WHERE stuck.data_flow_id = flow.id OFFSET 0)
    FOR UPDATE
),
requested_started AS (
    UPDATE data_flow_runs AS run
    SET status = 'in_progress', runner_id = :runner_id::uuid, started_at = statement_timestamp()
    FROM wanted
    WHERE run.data_flow_id = wanted.id AND run.status = 'pending'
    RETURNING run.id, run.data_flow_id
),
newly_started AS (
    INSERT INTO data_flow_runs (data_flow_id, runner_id, status, scheduled_for, started_at)
    SELECT wanted.id, :runner_id::uuid, 'in_progress', statement_timestamp(), statement_timestamp()
    FROM wanted
    WHERE NOT EXISTS (SELECT FROM requested_started)
    ON CONFLICT (data_flow_id) WHERE status IN ('pending', 'in_progress') DO NOTHING
    RETURNING id, data_flow_id
),
started AS MATERIALIZED (
    SELECT id, data_flow_id FROM requested_started
    UNION ALL
    SELECT id, data_flow_id FROM newly_started
)
UPDATE data_flows AS flow
SET last_run_at = statement_timestamp(),
    last_run_status = 'in_progress',
    next_run_at = greatest(flow.next_run_at, statement_timestamp() + flow.run_interval * interval '1 second')
FROM started
WHERE flow.id = ANY (ARRAY[started.data_flow_id])
RETURNING
    started.id AS run_id,
    flow.name,
    flow.class_name,
    flow.configuration,
    flow.run_timeout;

-- name: add_flow(name, description, enabled, configuration, run_interval, run_timeout)^
-- Insert a flow and return it; the table's constraints are the validation.
INSERT INTO data_flows (name, description, enabled, configuration, run_interval, run_timeout)
VALUES (:name::text, :description::text, :enabled::boolean, :configuration::jsonb, :run_interval::integer,
    :run_timeout::integer)
RETURNING
    id,
    name,
    description,
    enabled,
    configuration,
    class_name,
    run_interval,
    run_timeout,
    last_run_at,
    last_run_status,
    next_run_at,
    created_at,
    updated_at;

-- name: add_flow_if_absent(name, description, configuration, run_interval)!
-- Insert the row of a flow class that names an interval; a row of that name is left as it is. 0: there was one.
INSERT INTO data_flows (name, description, configuration, run_interval)
SELECT :name::text, :description::text, :configuration::jsonb, :run_interval::integer
WHERE NOT EXISTS (SELECT FROM data_flows AS flow WHERE flow.name = :name::text)
ON CONFLICT (name) DO NOTHING;

-- name: find_flow(name)^
-- A flow by its name. No row: there is none of that name.
SELECT
    flow.id,
    flow.name,
    EXISTS (
        SELECT FROM data_flow_stuck_threads AS stuck WHERE stuck.data_flow_id = flow.id
    ) AS has_stuck_thread
FROM data_flows AS flow
WHERE flow.name = :name::text;

-- name: list_flows()
-- Every flow, by name. No row: the table is empty.
-- Its columns are named, here and in add_flow: a prepared SELECT * fails when somebody adds a column to the table.
SELECT
    id,
    name,
    description,
    enabled,
    configuration,
    class_name,
    run_interval,
    run_timeout,
    last_run_at,
    last_run_status,
    next_run_at,
    created_at,
    updated_at
FROM data_flows
ORDER BY name;

-- name: list_flow_status()
-- Every flow with how it stands: the columns of data_flow_status with those of data_flows. No row: there are no flows.
SELECT
    status.id,
    status.name,
    flow.description,
    status.enabled,
    flow.configuration,
    flow.class_name,
    status.run_interval,
    flow.run_timeout,
    status.last_run_status,
    status.last_error,
    status.last_run_at,
    status.next_run_at,
    status.overdue,
    status.overdue_by,
    status.running,
    status.running_for,
    status.running_on,
    status.requested,
    status.stuck_threads,
    flow.created_at,
    flow.updated_at
FROM data_flow_status AS status
JOIN data_flows AS flow ON flow.id = status.id
ORDER BY status.name;
