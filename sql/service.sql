-- Statements on no table of ours: bounds on waiting, and the migrations. (data_flows.sql explains the format.)

-- name: begin_bounded()#
-- Begin a transaction whose every wait is bounded, in one round trip; and with plans that go by the indexes row by row,
-- also while the tables are new and have no statistics, or have grown since. They are made once a connection:
-- making one takes longer than running it.
BEGIN;
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = '4s';
SET LOCAL enable_seqscan = off;
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off;
SET LOCAL plan_cache_mode = force_generic_plan;
SET LOCAL jit = off;

-- name: bound_waits(lock_timeout, statement_timeout)^
-- Other bounds for this transaction: how long to wait for a lock, and for a statement as a whole (milliseconds).
SELECT
    set_config('lock_timeout', :lock_timeout::text, true) AS lock_timeout,
    set_config('statement_timeout', :statement_timeout::text, true) AS statement_timeout;

-- name: applied_migrations()
-- The migrations that the database has had. An error (no such table): none.
SELECT migration_id FROM _yoyo_migration ORDER BY migration_id;

-- name: lock_migrations()^
-- Wait until no other process migrates; the lock goes with the connection, however that ends.
SELECT pg_advisory_lock(hashtext('data-flow-heartbeat migrations'));

-- name: database_time()$
-- The one clock that schedules go by.
SELECT statement_timestamp();
