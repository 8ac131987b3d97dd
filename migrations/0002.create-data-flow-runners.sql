-- data_flow_runners: who is alive. A run is given up when its runner shows no sign of life, never by its own age,
-- so that a long run is left in peace. The rule stands in data_flow_runner_is_dead, and nowhere else.
-- depends: 0001.create-data-flows

CREATE TABLE data_flow_runners (
    id           uuid        NOT NULL,
    host         text        NOT NULL,
    pid          integer     NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT now(),
    last_seen_at timestamptz NOT NULL DEFAULT now(),

    CONSTRAINT data_flow_runners_pkey PRIMARY KEY (id),
    CONSTRAINT data_flow_runners_timestamps_finite CHECK (
        started_at       BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
        AND last_seen_at BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
    )
);

-- While the server was down nobody could renew: the server's own start counts as everybody's sign of life, else an
-- outage longer than the TTL would fail every run that goes on.
-- Without SET, and of built-ins alone, so that the planner puts its body in the place of a call.
CREATE FUNCTION data_flow_runner_is_dead(last_seen_at timestamptz, runner_ttl float8) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT greatest(last_seen_at, pg_postmaster_start_time())
        <= statement_timestamp() - runner_ttl * interval '1 second'
$$;

COMMENT ON FUNCTION data_flow_runner_is_dead(timestamptz, float8) IS
    'Whether a runner last seen at a time counts as dead, after runner_ttl seconds without a sign of life.';
COMMENT ON TABLE data_flow_runners IS
    'The processes that run flows, one row each. Renewed every third of HEARTBEAT_RUNNER_TTL; '
    'gone when the process ends, or when a heartbeat finds it dead.';
COMMENT ON COLUMN data_flow_runners.id IS 'New for every process start; data_flow_runs.runner_id refers to it.';
COMMENT ON COLUMN data_flow_runners.host IS 'Name of the machine or container.';
COMMENT ON COLUMN data_flow_runners.pid IS 'Process id there.';
COMMENT ON COLUMN data_flow_runners.started_at IS 'When the runner registered.';
COMMENT ON COLUMN data_flow_runners.last_seen_at IS
    'Last sign of life. Older than HEARTBEAT_RUNNER_TTL (and than the server''s own start) means dead: '
    'its runs are failed by the next heartbeat.';
