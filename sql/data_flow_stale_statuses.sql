-- Statements on data_flow_stale_statuses: flows whose last_run_status is stale. (data_flows.sql explains the format.)

-- name: refresh_stale_statuses()!
-- Put right the last_run_status of the flows that are noted, and strike their notes. Locked flows wait for a later
-- heartbeat. 0: none was noted, or all are locked.
WITH noted AS MATERIALIZED (
    SELECT note.data_flow_id
    FROM data_flow_stale_statuses AS note
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
),
free AS MATERIALIZED (
    SELECT flow.id
    FROM noted
    JOIN data_flows AS flow ON flow.id = noted.data_flow_id
    FOR NO KEY UPDATE OF flow SKIP LOCKED
),
refreshed AS (
    UPDATE data_flows AS flow
    SET last_run_status = (
        SELECT run.status
        FROM data_flow_runs AS run
        WHERE run.data_flow_id = flow.id AND run.started_at IS NOT NULL
        ORDER BY run.id DESC
        LIMIT 1
    )
    FROM free
    WHERE flow.id = free.id
    RETURNING flow.id
)
DELETE FROM data_flow_stale_statuses AS note
USING noted
WHERE note.data_flow_id = noted.data_flow_id
    AND (
        EXISTS (SELECT FROM refreshed WHERE refreshed.id = note.data_flow_id)
        OR NOT EXISTS (SELECT FROM data_flows AS flow WHERE flow.id = note.data_flow_id)
    );
