-- data_flow_stuck_threads: runs that were failed for their timeout while their thread lives on (Python cannot kill
-- a thread). The flow is not started again, by any process, until the thread has ended or its process is gone.
-- depends: 0004.create-data-flow-runs

CREATE TABLE data_flow_stuck_threads (
    run_id       bigint      NOT NULL,
    data_flow_id bigint      NOT NULL,
    runner_id    uuid        NOT NULL,
    since        timestamptz NOT NULL DEFAULT now(),

    CONSTRAINT data_flow_stuck_threads_pkey PRIMARY KEY (run_id),
    CONSTRAINT data_flow_stuck_threads_timestamps_finite CHECK (
        since BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
    ),
    -- No foreign key to data_flows: its check would wait for whoever has the flow's row locked.
    CONSTRAINT data_flow_stuck_threads_runner_exists
        FOREIGN KEY (runner_id) REFERENCES data_flow_runners (id) ON DELETE CASCADE
);

CREATE INDEX data_flow_stuck_threads_by_flow ON data_flow_stuck_threads (data_flow_id);
CREATE INDEX data_flow_stuck_threads_by_runner ON data_flow_stuck_threads (runner_id);

COMMENT ON TABLE data_flow_stuck_threads IS
    'Timed-out runs whose thread has not ended yet; usually empty. Their flows are not started meanwhile. '
    'Restart the process (see data_flow_runners) to be rid of one.';
COMMENT ON COLUMN data_flow_stuck_threads.run_id IS 'The run that timed out (data_flow_runs.id).';
COMMENT ON COLUMN data_flow_stuck_threads.data_flow_id IS 'Its flow, which is not started while this row stands.';
COMMENT ON COLUMN data_flow_stuck_threads.runner_id IS 'The process with the thread; the row goes with the runner.';
COMMENT ON COLUMN data_flow_stuck_threads.since IS 'When the run timed out.';
