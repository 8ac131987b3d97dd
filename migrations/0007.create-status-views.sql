-- Three views for psql: how the flows stand, what ran, and what the heartbeats did.
-- depends: 0006.create-data-flow-stale-statuses

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
    (
        SELECT count(DISTINCT stuck.run_id) FROM data_flow_stuck_threads AS stuck WHERE stuck.data_flow_id = flow.id
    ) AS stuck_threads
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

-- The columns of a run stand here and nowhere else: what lists runs selects from it. It has no ORDER BY of its own, so
-- that "the newest 20" and "those of one flow" go by the index that fits.
CREATE VIEW data_flow_run_log AS
SELECT
    run.id,
    run.data_flow_id,
    flow.name AS flow_name,
    run.heartbeat_id,
    run.runner_id,
    runner.host,
    run.status,
    run.scheduled_for,
    run.started_at - run.scheduled_for AS lateness,
    run.started_at,
    run.ended_at,
    run.duration,
    run.result,
    split_part(run.error, E'\n', 1) AS error_first_line,
    run.error,
    run.backtrace,
    run.created_at
FROM data_flow_runs AS run
JOIN data_flows AS flow ON flow.id = run.data_flow_id
LEFT JOIN data_flow_runners AS runner ON runner.id = run.runner_id;

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
COMMENT ON COLUMN data_flow_status.last_error IS
    'First line of the error of the last run that ended; null if it was a success.';
COMMENT ON COLUMN data_flow_status.last_run_at IS 'When the last run was claimed.';
COMMENT ON COLUMN data_flow_status.next_run_at IS 'When the flow is next due.';
COMMENT ON COLUMN data_flow_status.overdue IS
    'Due, and no heartbeat has claimed it yet. If it stays so, look at heartbeat_log: is the pinger alive?';
COMMENT ON COLUMN data_flow_status.overdue_by IS 'For how long.';
COMMENT ON COLUMN data_flow_status.running IS 'A run is in progress.';
COMMENT ON COLUMN data_flow_status.running_for IS 'For how long.';
COMMENT ON COLUMN data_flow_status.running_on IS 'In which process: host and pid.';
COMMENT ON COLUMN data_flow_status.requested IS 'A run was asked for and waits for the next heartbeat.';
COMMENT ON COLUMN data_flow_status.stuck_threads IS
    'Runs that were given up and whose thread lives on; the flow is not started meanwhile.';
COMMENT ON VIEW data_flow_run_log IS 'Every run with its flow''s name. ORDER BY id DESC LIMIT 20 gives the newest.';
COMMENT ON COLUMN data_flow_run_log.id IS 'data_flow_runs.id';
COMMENT ON COLUMN data_flow_run_log.data_flow_id IS 'data_flows.id';
COMMENT ON COLUMN data_flow_run_log.flow_name IS 'data_flows.name';
COMMENT ON COLUMN data_flow_run_log.heartbeat_id IS 'The heartbeat that started it; null if none did.';
COMMENT ON COLUMN data_flow_run_log.runner_id IS 'The process that runs it, or ran it.';
COMMENT ON COLUMN data_flow_run_log.host IS 'Its machine or container; null once the process has ended.';
COMMENT ON COLUMN data_flow_run_log.status IS 'pending, in_progress, success or failed.';
COMMENT ON COLUMN data_flow_run_log.scheduled_for IS 'When it was due; for a requested run, when it was asked for.';
COMMENT ON COLUMN data_flow_run_log.lateness IS 'started_at - scheduled_for; null while pending.';
COMMENT ON COLUMN data_flow_run_log.started_at IS 'When it was claimed; null while pending.';
COMMENT ON COLUMN data_flow_run_log.ended_at IS 'When its end was recorded; null while it is live.';
COMMENT ON COLUMN data_flow_run_log.duration IS 'ended_at - started_at';
COMMENT ON COLUMN data_flow_run_log.result IS 'What run() returned, as JSON; null if nothing.';
COMMENT ON COLUMN data_flow_run_log.error_first_line IS 'The first line of error.';
COMMENT ON COLUMN data_flow_run_log.error IS 'Why it failed: the exception''s type and message, or what ended it.';
COMMENT ON COLUMN data_flow_run_log.backtrace IS 'The Python traceback, if there was one.';
COMMENT ON COLUMN data_flow_run_log.created_at IS 'When it was asked for or claimed.';
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
