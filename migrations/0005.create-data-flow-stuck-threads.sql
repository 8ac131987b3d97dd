-- data_flow_stuck_threads: runs that were given up, for their timeout or by hand, while their thread lives on (Python
-- cannot kill a thread). The flow is not started again, by any process, until the thread has ended or its process is
-- gone.
-- depends: 0004.create-data-flow-runs

CREATE TABLE data_flow_stuck_threads (
    run_id       bigint      NOT NULL,
    data_flow_id bigint      NOT NULL,
    runner_id    uuid        NOT NULL,
    since        timestamptz NOT NULL DEFAULT now(),
    is_by_hand   boolean     NOT NULL DEFAULT false,

    -- Two notes for one run, so that the process's own waits for nobody who has ended the run and not committed yet.
    CONSTRAINT data_flow_stuck_threads_pkey PRIMARY KEY (run_id, is_by_hand),
    CONSTRAINT data_flow_stuck_threads_timestamps_finite CHECK (
        since BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
    ),
    -- No foreign key to data_flows: its check would wait for whoever has the flow's row locked.
    CONSTRAINT data_flow_stuck_threads_runner_exists
        FOREIGN KEY (runner_id) REFERENCES data_flow_runners (id) ON DELETE CASCADE
);

CREATE INDEX data_flow_stuck_threads_by_flow ON data_flow_stuck_threads (data_flow_id);
CREATE INDEX data_flow_stuck_threads_by_runner ON data_flow_stuck_threads (runner_id);

-- Who ends or deletes a run by hand ends no thread. Its process hears of it at its next renewal and takes the note away
-- once the thread has ended; the flow must not start before that. heartbeat.keeps_threads is set where the service
-- itself ends a run.
CREATE FUNCTION data_flow_runs_note_thread() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO data_flow_stuck_threads (run_id, data_flow_id, runner_id, is_by_hand)
    SELECT OLD.id, OLD.data_flow_id, runner.id, true
    FROM data_flow_runners AS runner
    WHERE runner.id = OLD.runner_id
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;

CREATE TRIGGER data_flow_runs_ended_by_hand
    AFTER UPDATE ON data_flow_runs
    FOR EACH ROW WHEN (
        OLD.status = 'in_progress' AND NEW.status <> 'in_progress'
        AND current_setting('heartbeat.keeps_threads', true) IS DISTINCT FROM 'on'
    )
    EXECUTE FUNCTION data_flow_runs_note_thread();

CREATE TRIGGER data_flow_runs_deleted_by_hand
    AFTER DELETE ON data_flow_runs
    FOR EACH ROW WHEN (OLD.status = 'in_progress')
    EXECUTE FUNCTION data_flow_runs_note_thread();

CREATE FUNCTION data_flow_runs_note_threads() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO data_flow_stuck_threads (run_id, data_flow_id, runner_id, is_by_hand)
    SELECT run.id, run.data_flow_id, runner.id, true
    FROM data_flow_runs AS run
    JOIN data_flow_runners AS runner ON runner.id = run.runner_id
    WHERE run.status = 'in_progress'
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;

CREATE TRIGGER data_flow_runs_truncated
    BEFORE TRUNCATE ON data_flow_runs
    FOR EACH STATEMENT EXECUTE FUNCTION data_flow_runs_note_threads();

COMMENT ON TABLE data_flow_stuck_threads IS
    'Runs that were given up and whose thread has not ended yet; usually empty. '
    'Their flows are not started meanwhile. '
    'Restart the process (see data_flow_runners) to be rid of one.';
COMMENT ON COLUMN data_flow_stuck_threads.run_id IS
    'The run that timed out, or was ended or deleted by hand (data_flow_runs.id).';
COMMENT ON COLUMN data_flow_stuck_threads.data_flow_id IS 'Its flow, which is not started while this row stands.';
COMMENT ON COLUMN data_flow_stuck_threads.runner_id IS 'The process with the thread; the row goes with the runner.';
COMMENT ON COLUMN data_flow_stuck_threads.since IS 'When the run was given up.';
COMMENT ON COLUMN data_flow_stuck_threads.is_by_hand IS
    'True: noted by a trigger, when somebody ended or deleted the run; false: noted by its process.';
