-- data_flow_stale_statuses: flows whose last_run_status is to be put right. A run may end without its flow's row being
-- updated: by hand, for a dead runner, or while somebody has that row locked. A note here costs only those; an index on
-- last_run_status that finds them would cost every run.
-- depends: 0005.create-data-flow-stuck-threads

CREATE TABLE data_flow_stale_statuses (
    data_flow_id bigint      NOT NULL,
    noted_at     timestamptz NOT NULL DEFAULT now(),

    -- No foreign key: its check would wait for whoever is deleting the flow.
    CONSTRAINT data_flow_stale_statuses_pkey PRIMARY KEY (data_flow_id),
    CONSTRAINT data_flow_stale_statuses_timestamps_finite CHECK (
        noted_at BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
    )
);

CREATE FUNCTION data_flow_runs_note_stale_status() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO data_flow_stale_statuses (data_flow_id) VALUES (OLD.data_flow_id) ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;

-- The service's record_outcomes updates last_run_status itself and says so in heartbeat.keeps_status; everybody else's
-- change is noted.
CREATE TRIGGER data_flow_runs_stale_status_on_end
    AFTER UPDATE ON data_flow_runs
    FOR EACH ROW WHEN (
        OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL
        AND current_setting('heartbeat.keeps_status', true) IS DISTINCT FROM 'on'
    )
    EXECUTE FUNCTION data_flow_runs_note_stale_status();

CREATE TRIGGER data_flow_runs_stale_status_on_delete
    AFTER DELETE ON data_flow_runs
    FOR EACH ROW WHEN (OLD.ended_at IS NULL)
    EXECUTE FUNCTION data_flow_runs_note_stale_status();

COMMENT ON TABLE data_flow_stale_statuses IS
    'Flows whose last_run_status the next heartbeat puts right; usually empty. Kept by triggers on data_flow_runs.';
COMMENT ON COLUMN data_flow_stale_statuses.data_flow_id IS 'The flow (data_flows.id); it may have been deleted since.';
COMMENT ON COLUMN data_flow_stale_statuses.noted_at IS 'When its run ended and its last_run_status did not follow.';
