-- Two views for psql: how the flows stand, and what the heartbeats did.
-- depends: 0006.create-data-flow-unsettled

CREATE VIEW data_flow_status AS
SELECT
    flow.id,
    flow.name,
    flow.enabled,
    flow.run_interval,
    flow.last_run_status,
    split_part(last_ended.error, E'\n', 1) AS last_error,
    flow.last_run_at,
    flow.next_run_at,
    flow.enabled AND live.id IS NULL AND flow.next_run_at < now() AS overdue,
    CASE WHEN flow.enabled AND live.id IS NULL AND flow.next_run_at < now()
         THEN now() - flow.next_run_at END AS overdue_by,
    live.status IS NOT DISTINCT FROM 'in_progress' AS running,
    CASE WHEN live.status = 'in_progress' THEN now() - live.started_at END AS running_for,
    CASE WHEN live.status = 'in_progress'
         THEN coalesce(runner.host || ' pid ' || runner.pid, 'unknown runner ' || live.runner_id) END AS running_on,
    live.status IS NOT DISTINCT FROM 'pending' AS requested,
    (SELECT count(*) FROM data_flow_stuck_threads AS stuck WHERE stuck.data_flow_id = flow.id) AS stuck_threads
FROM data_flows AS flow
LEFT JOIN data_flow_runs AS live
    ON live.data_flow_id = flow.id AND live.status IN ('pending', 'in_progress')
LEFT JOIN data_flow_runners AS runner ON runner.id = live.runner_id
LEFT JOIN LATERAL (
    SELECT run.error
    FROM data_flow_runs AS run
    WHERE run.data_flow_id = flow.id AND run.status IN ('success', 'failed')
    ORDER BY run.id DESC
    LIMIT 1
) AS last_ended ON true;

CREATE VIEW heartbeat_log AS
SELECT
    id,
    received_at,
    client_ip,
    flows_due,
    flows_triggered,
    flows_succeeded,
    flows_failed,
    flows_triggered - flows_succeeded - flows_failed AS flows_running,
    finished_at - received_at AS duration
FROM heartbeats
ORDER BY id DESC;

COMMENT ON VIEW data_flow_status IS 'One row a flow: how it stands right now.';
COMMENT ON COLUMN data_flow_status.id IS 'data_flows.id';
COMMENT ON COLUMN data_flow_status.name IS 'data_flows.name';
COMMENT ON COLUMN data_flow_status.enabled IS 'False: paused.';
COMMENT ON COLUMN data_flow_status.run_interval IS 'Seconds from one run to the next.';
COMMENT ON COLUMN data_flow_status.last_run_status IS 'Status of the last run.';
COMMENT ON COLUMN data_flow_status.last_error IS 'First line of the error of the last run that ended; null if it was a success.';
COMMENT ON COLUMN data_flow_status.last_run_at IS 'When the last run was claimed.';
COMMENT ON COLUMN data_flow_status.next_run_at IS 'When the flow is next due.';
COMMENT ON COLUMN data_flow_status.overdue IS 'Due, and no heartbeat has claimed it yet. If it stays so, look at heartbeat_log: is the pinger alive?';
COMMENT ON COLUMN data_flow_status.overdue_by IS 'For how long.';
COMMENT ON COLUMN data_flow_status.running IS 'A run is in progress.';
COMMENT ON COLUMN data_flow_status.running_for IS 'For how long.';
COMMENT ON COLUMN data_flow_status.running_on IS 'In which process: host and pid.';
COMMENT ON COLUMN data_flow_status.requested IS 'A run was asked for and waits for the next heartbeat.';
COMMENT ON COLUMN data_flow_status.stuck_threads IS 'Timed-out runs whose thread lives on; the flow is not started meanwhile.';
COMMENT ON VIEW heartbeat_log IS 'Heartbeats with their counts, newest first.';
COMMENT ON COLUMN heartbeat_log.id IS 'heartbeats.id';
COMMENT ON COLUMN heartbeat_log.received_at IS 'When it began.';
COMMENT ON COLUMN heartbeat_log.client_ip IS 'Address of the pinger; null without HTTP.';
COMMENT ON COLUMN heartbeat_log.flows_due IS 'Flows due or asked for when it began.';
COMMENT ON COLUMN heartbeat_log.flows_triggered IS 'Runs that it started.';
COMMENT ON COLUMN heartbeat_log.flows_succeeded IS 'Of those, ended with success.';
COMMENT ON COLUMN heartbeat_log.flows_failed IS 'Of those, failed.';
COMMENT ON COLUMN heartbeat_log.flows_running IS 'Of those, not ended yet.';
COMMENT ON COLUMN heartbeat_log.duration IS 'From its beginning to the end of its last run; null while one still runs.';
