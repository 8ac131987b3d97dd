-- Statements that belong to no table of flows: what sessions are set to, the migrations, permits for large claims,
-- the clock. (data_flows.sql explains the format.)

-- name: begin_bounded()#
-- Begin a transaction whose every wait is bounded and whose plans go by the indexes, in one round trip. Sessions get
-- the same settings at their start, where no pooler is in the way; so there is nothing here but BEGIN and SET LOCAL.
BEGIN ISOLATION LEVEL READ COMMITTED;
-- A lock, a silent client, a slow plan: a heartbeat is answered 503 within five seconds, whatever it was.
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '4s';
-- A process that was stopped in the middle keeps no lock for longer than this.
SET LOCAL idle_in_transaction_session_timeout = '2s';
-- A role or a database may have it otherwise; under REPEATABLE READ two claims at once end in serialization errors.
SET LOCAL default_transaction_isolation = 'read committed';
-- The forms in which psycopg reads times and intervals; a role may have chosen others.
SET LOCAL datestyle = 'ISO';
SET LOCAL intervalstyle = 'postgres';
SET LOCAL timezone = 'UTC';
-- The statements all find a few rows by an index; while the tables are new and without statistics, or have grown since,
-- the planner would read them through.
SET LOCAL enable_seqscan = off;
-- A plan is made once a connection: making it takes longer than running it, and so does compiling it.
SET LOCAL plan_cache_mode = force_generic_plan;
SET LOCAL jit = off;
-- The claim sets next_run_at itself, also to what it was (a hold): the trigger of data_flows leaves it alone.
SET LOCAL heartbeat.keeps_schedule = 'on';
-- Who ends a run here knows whether its thread lives; anybody else may not, and data_flow_runs_ended_by_hand notes it.
SET LOCAL heartbeat.keeps_threads = 'on';

-- name: bound_recording()#
-- What a transaction, or a session, that records outcomes has otherwise: to be run after begin_bounded.
-- An outcome waits for nobody's lock for long; record_outcomes_only goes past it.
SET LOCAL lock_timeout = '200ms';
-- record_outcomes updates last_run_status itself: data_flow_runs_stale_status_on_end need not note the flow.
SET LOCAL heartbeat.keeps_status = 'on';

-- name: has_bounds()$
-- Whether the session has these settings from its start.
SELECT current_setting('heartbeat.keeps_schedule', true) IS NOT DISTINCT FROM 'on';

-- name: bound_statement(milliseconds)$
-- Another bound for this transaction's statements.
SELECT set_config('statement_timeout', :milliseconds::text, true);

-- name: discard_session()!
-- Forget whatever a flow has left in a session: settings, role, search path, temporary tables, prepared statements.
DISCARD ALL;

-- name: applied_migrations()
-- The migrations that the database has had. An error (no such table): none.
SELECT migration_id FROM _yoyo_migration ORDER BY migration_id;

-- name: schema_fingerprints()
-- The text that they had when they were applied. An error (no such table): an unreleased version applied them.
SELECT migration_id, fingerprint, version FROM data_flow_schema ORDER BY migration_id;

-- name: list_damage()
-- What keeps the schema from doing what it must, a sentence each. No row: nothing.
SELECT 'the database takes no writes: it is a standby, or default_transaction_read_only is on' AS problem
WHERE pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'
UNION ALL
SELECT 'triggers do not fire: session_replication_role is not origin'
WHERE current_setting('session_replication_role') <> 'origin'
UNION ALL
SELECT format('the trigger %%I is off: ALTER TABLE %%s ENABLE TRIGGER %%1$I', kept.tgname, kept.tgrelid::regclass)
FROM pg_trigger AS kept
WHERE kept.tgenabled IN ('D', 'R')
    AND kept.tgrelid = ANY (ARRAY[
        'data_flows'::regclass, 'data_flow_runs'::regclass, 'data_flow_runners'::regclass,
        'data_flow_stuck_threads'::regclass
    ])
UNION ALL
SELECT format('the trigger %%I of %%s is missing', needed.name, needed.relation)
FROM (
    VALUES
        ('data_flows'::regclass, 'data_flows_next_run_at_on_insert'),
        ('data_flows', 'data_flows_next_run_at_on_update'),
        ('data_flows', 'data_flows_updated_at'),
        ('data_flow_runs', 'data_flow_runs_ended_is_final'),
        ('data_flow_runs', 'data_flow_runs_stale_status_on_end'),
        ('data_flow_runs', 'data_flow_runs_stale_status_on_delete'),
        ('data_flow_runs', 'data_flow_runs_ended_by_hand'),
        ('data_flow_runs', 'data_flow_runs_deleted_by_hand'),
        ('data_flow_runs', 'data_flow_runs_truncated')
) AS needed (relation, name)
WHERE NOT EXISTS (
    SELECT FROM pg_trigger AS kept WHERE kept.tgrelid = needed.relation AND kept.tgname = needed.name
)
UNION ALL
SELECT format('the unique index %%I of data_flow_runs is missing or not valid', needed.name)
FROM (VALUES ('data_flow_runs_pkey'), ('data_flow_runs_one_live_run_per_flow')) AS needed (name)
WHERE NOT EXISTS (
    SELECT
    FROM pg_index AS kept
    JOIN pg_class AS index ON index.oid = kept.indexrelid
    WHERE kept.indrelid = 'data_flow_runs'::regclass
        AND index.relname = needed.name
        AND kept.indisunique
        AND kept.indisvalid
);

-- name: note_fingerprint(migration_id, fingerprint, version)!
-- Note a migration's text, in the transaction that applies it.
INSERT INTO data_flow_schema (migration_id, fingerprint, version)
VALUES (:migration_id::text, :fingerprint::text, :version::text);

-- name: forget_fingerprint(migration_id)!
-- Strike the note, in the transaction that undoes the migration.
DELETE FROM data_flow_schema WHERE migration_id = :migration_id::text;

-- name: lock_migrations()^
-- Wait until no other process migrates; the lock goes with the connection, however that ends.
SELECT pg_advisory_lock(hashtext('data-flow-heartbeat migrations'));

-- name: take_permit(permit)^
-- Take one of the two permits for large claims that all processes share, and keep it until this transaction ends.
-- A claim reads past the rows that others have locked: with eight at once (four processes) half the speed was gone.
-- An error (lock_timeout): both are taken for long, and the claim goes without.
SELECT pg_advisory_xact_lock(hashtext('data-flow-heartbeat claims'), :permit::integer);

-- name: database_time()$
-- The one clock that schedules go by.
SELECT statement_timestamp();
