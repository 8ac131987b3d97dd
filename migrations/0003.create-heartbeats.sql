-- heartbeats: every heartbeat that was accepted, so that an operator can see whether the pinger pings.
-- depends: 0002.create-data-flow-runners

CREATE TABLE heartbeats (
    id              bigint      GENERATED ALWAYS AS IDENTITY,
    runner_id       uuid,
    received_at     timestamptz NOT NULL DEFAULT now(),
    finished_at     timestamptz,
    client_ip       inet,
    flows_due       integer     NOT NULL DEFAULT 0,
    flows_triggered integer     NOT NULL DEFAULT 0,
    flows_succeeded integer     NOT NULL DEFAULT 0,
    flows_failed    integer     NOT NULL DEFAULT 0,

    CONSTRAINT heartbeats_pkey PRIMARY KEY (id),
    CONSTRAINT heartbeats_finished_at_not_before_received_at CHECK (finished_at >= received_at),
    CONSTRAINT heartbeats_counts_not_negative CHECK (
        least(flows_due, flows_triggered, flows_succeeded, flows_failed) >= 0
    ),
    CONSTRAINT heartbeats_timestamps_finite CHECK (
        least(received_at, finished_at) >= '0001-01-02 00:00+00'
        AND greatest(received_at, finished_at) <= '9999-12-30 00:00+00'
    )
);

-- The few that are open: a heartbeat looks here for those whose process died.
CREATE INDEX heartbeats_open ON heartbeats (id) WHERE finished_at IS NULL;

COMMENT ON TABLE heartbeats IS
    'One row an accepted heartbeat; rejected requests leave none. Pruned after HEARTBEAT_RETENTION_DAYS.';
COMMENT ON COLUMN heartbeats.id IS 'Number of the heartbeat; data_flow_runs.heartbeat_id refers to it.';
COMMENT ON COLUMN heartbeats.runner_id IS 'The process that received it. No foreign key: history outlives processes.';
COMMENT ON COLUMN heartbeats.received_at IS
    'When it began, by the database''s clock. Flows due at this moment are claimed.';
COMMENT ON COLUMN heartbeats.finished_at IS 'When the last run that it started had ended; null while one still runs.';
COMMENT ON COLUMN heartbeats.client_ip IS 'Address of the pinger; null without HTTP.';
COMMENT ON COLUMN heartbeats.flows_due IS 'Flows due or asked for when it began, each once.';
COMMENT ON COLUMN heartbeats.flows_triggered IS 'Runs that this heartbeat started.';
COMMENT ON COLUMN heartbeats.flows_succeeded IS 'Of those, the ones that ended with success.';
COMMENT ON COLUMN heartbeats.flows_failed IS 'Of those, the ones that failed.';
COMMENT ON INDEX heartbeats_open IS 'Finds heartbeats that are not finished.';
