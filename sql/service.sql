-- Statements on no table of ours: bounds on waiting, and the migrations. (data_flows.sql explains the format.)

-- name: begin_bounded()#
-- Begin a transaction whose every wait is bounded, in one round trip; and with plans that go by the indexes, also while
-- the tables are new and have no statistics, or have grown since. They are made once a connection: making one takes
-- longer than running it. What a role or a database may have set otherwise is set as the service needs it. And the claim sets next_run_at itself, whatever the trigger of data_flows thinks.
-- Sessions get the same settings at their start, where no pooler is in the way.
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '4s';
SET LOCAL idle_in_transaction_session_timeout = '2s';
SET LOCAL default_transaction_isolation = 'read committed';
SET LOCAL datestyle = 'ISO';
SET LOCAL intervalstyle = 'postgres';
SET LOCAL timezone = 'UTC';
SET LOCAL enable_seqscan = off;
SET LOCAL plan_cache_mode = force_generic_plan;
SET LOCAL jit = off;
SET LOCAL heartbeat.keeps_schedule = 'on';

-- name: has_bounds()$
-- Whether the session has these settings from its start.
SELECT current_setting('heartbeat.keeps_schedule', true) IS NOT DISTINCT FROM 'on';

-- name: begin_recording()#
-- The same for record_outcomes, which waits for nobody's lock and tells the flows itself (the trigger
-- data_flow_runs_ended_untold need not).
BEGIN ISOLATION LEVEL READ COMMITTED;
SET LOCAL lock_timeout = '200ms';
SET LOCAL statement_timeout = '4s';
SET LOCAL idle_in_transaction_session_timeout = '2s';
SET LOCAL default_transaction_isolation = 'read committed';
SET LOCAL datestyle = 'ISO';
SET LOCAL intervalstyle = 'postgres';
SET LOCAL timezone = 'UTC';
SET LOCAL enable_seqscan = off;
SET LOCAL plan_cache_mode = force_generic_plan;
SET LOCAL jit = off;
SET LOCAL heartbeat.tells_flows = 'on';

-- name: bound_statement(milliseconds)$
-- Another bound for this transaction's statements.
SELECT set_config('statement_timeout', :milliseconds::text, true);

-- name: discard_session()!
-- Forget whatever a flow has left in a session: settings, role, search path, temporary tables, prepared statements.
DISCARD ALL;

-- name: applied_migrations()
-- The migrations that the database has had. An error (no such table): none.
SELECT migration_id FROM _yoyo_migration ORDER BY migration_id;

-- name: lock_migrations()^
-- Wait until no other process migrates; the lock goes with the connection, however that ends.
SELECT pg_advisory_lock(hashtext('data-flow-heartbeat migrations'));

-- name: take_turn(turn)^
-- Wait for a turn among the processes that claim much at once, until this transaction ends: a claim reads past the rows
-- that others have locked, so that with eight at once (four processes) half the throughput was gone.
SELECT pg_advisory_xact_lock(hashtext('data-flow-heartbeat claims'), :turn::integer);

-- name: database_time()$
-- The one clock that schedules go by.
SELECT statement_timestamp();
