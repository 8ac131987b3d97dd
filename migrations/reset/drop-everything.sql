-- Drop all that is ours, and all that an unreleased version left under a name that is no longer used: what
-- `heartbeat migrate --reset` does, in one transaction, before it migrates anew. What is added to migrations/ is added
-- here; what is renamed or removed there, until 1.0.0, stays here.
--
-- Nothing has CASCADE: a table, a view or a key of somebody else's that depends on ours makes it fail, and is named.

-- A service that is still up, or a forgotten transaction, is no reason to have everybody queue behind this for long.
SET LOCAL lock_timeout = '10s';

-- What yoyo knows of our migrations: those that are noted, and by name those whose note is missing. What it knows of
-- another program's in this schema stays.
CREATE TABLE IF NOT EXISTS data_flow_schema (migration_id text);

DELETE FROM _yoyo_migration
WHERE migration_id IN (SELECT noted.migration_id FROM data_flow_schema AS noted)
    OR migration_id IN (
        '0000.create-data-flow-schema',
        '0001.create-data-flows',
        '0002.create-data-flow-runners',
        '0003.create-heartbeats',
        '0004.create-data-flow-runs',
        '0005.create-data-flow-stuck-threads',
        '0006.create-data-flow-stale-statuses',
        '0006.create-data-flow-unsettled',
        '0007.create-status-views',
        '0008.define-due',
        '0008.shorten-checks',
        '0009.refuse-changes-afterwards',
        '0010.leave-room-in-indexes'
    );

DROP VIEW IF EXISTS data_flow_status, data_flow_run_log, heartbeat_log, data_flows_waiting;

DROP TABLE IF EXISTS
    data_flows,
    data_flow_runs,
    data_flow_runners,
    data_flow_schema,
    data_flow_stale_statuses,
    data_flow_stuck_threads,
    data_flow_unsettled,
    heartbeats;

DROP FUNCTION IF EXISTS
    data_flow_is_due,
    data_flow_runner_is_dead,
    data_flow_runs_close_segment,
    data_flow_runs_note_stale_status,
    data_flow_runs_note_thread,
    data_flow_runs_note_threads,
    data_flow_runs_note_unsettled,
    data_flow_runs_refuse_change,
    data_flows_set_next_run_at,
    data_flows_set_updated_at;
