-- Undo partition-data-flow-runs.sql: copy every segment back into data_flow_runs, and drop it. Apply it as that one:
--   psql -1 -v ON_ERROR_STOP=1 -f partition-data-flow-runs.rollback.sql
-- Heartbeats wait meanwhile (ACCESS EXCLUSIVE) and answer 503 after two seconds; some two minutes for 10,000,000 runs.
-- Drop the segments that are not worth copying first.

LOCK TABLE data_flow_runs IN ACCESS EXCLUSIVE MODE;

DO $$
DECLARE
    segment regclass;
BEGIN
    FOR segment IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'data_flow_runs'::regclass ORDER BY inhrelid LOOP
        EXECUTE format(
            'INSERT INTO data_flow_runs (id, data_flow_id, heartbeat_id, runner_id, status, scheduled_for, started_at, '
            'ended_at, result, error, backtrace, created_at) OVERRIDING SYSTEM VALUE '
            'SELECT id, data_flow_id, heartbeat_id, runner_id, status, scheduled_for, started_at, '
            'ended_at, result, error, backtrace, created_at FROM ONLY %s ORDER BY id',
            segment
        );
        EXECUTE format('DROP TABLE %s', segment);
    END LOOP;
END
$$;

DROP FUNCTION data_flow_runs_close_segment();
