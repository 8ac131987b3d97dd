-- data_flow_unsettled: flows whose last_run_status is to be put right. A run may be ended without its flow being told:
-- by hand, for a dead runner, or while somebody has the flow's row locked. A note here costs only those; an index on
-- last_run_status that finds them would cost every run.
-- depends: 0005.create-data-flow-stuck-threads

CREATE TABLE data_flow_unsettled (
    data_flow_id bigint      NOT NULL,
    noted_at     timestamptz NOT NULL DEFAULT now(),

    -- No foreign key: its check would wait for whoever is deleting the flow.
    CONSTRAINT data_flow_unsettled_pkey PRIMARY KEY (data_flow_id),
    CONSTRAINT data_flow_unsettled_timestamps_finite CHECK (
        noted_at BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
    )
);

CREATE FUNCTION data_flow_runs_note_unsettled() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO data_flow_unsettled (data_flow_id) VALUES (OLD.data_flow_id) ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;

-- The service's record_outcomes tells the flows itself and says so; everybody else's change is noted.
CREATE TRIGGER data_flow_runs_ended_untold
    AFTER UPDATE ON data_flow_runs
    FOR EACH ROW WHEN (
        OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL
        AND current_setting('heartbeat.tells_flows', true) IS DISTINCT FROM 'on'
    )
    EXECUTE FUNCTION data_flow_runs_note_unsettled();

CREATE TRIGGER data_flow_runs_deleted_live
    AFTER DELETE ON data_flow_runs
    FOR EACH ROW WHEN (OLD.ended_at IS NULL)
    EXECUTE FUNCTION data_flow_runs_note_unsettled();

COMMENT ON TABLE data_flow_unsettled IS
    'Flows whose last_run_status the next heartbeat puts right; usually empty. Kept by triggers on data_flow_runs.';
COMMENT ON COLUMN data_flow_unsettled.data_flow_id IS 'The flow (data_flows.id); it may have been deleted since.';
COMMENT ON COLUMN data_flow_unsettled.noted_at IS 'When its run was ended without its being told.';
