-- data_flow_runs: every run, live or ended. The partial unique index is what keeps a flow from running twice at once.
-- depends: 0003.create-heartbeats

CREATE TABLE data_flow_runs (
    id            bigint      GENERATED ALWAYS AS IDENTITY,
    data_flow_id  bigint      NOT NULL,
    heartbeat_id  bigint,
    runner_id     uuid,
    status        text        NOT NULL DEFAULT 'pending',
    scheduled_for timestamptz NOT NULL DEFAULT now(),
    started_at    timestamptz,
    ended_at      timestamptz,
    duration      interval    GENERATED ALWAYS AS (ended_at - started_at) STORED,
    result        jsonb,
    error         text,
    backtrace     text,
    created_at    timestamptz NOT NULL DEFAULT now(),

    CONSTRAINT data_flow_runs_pkey PRIMARY KEY (id) WITH (fillfactor = 50, deduplicate_items = off),
    CONSTRAINT data_flow_runs_data_flow_exists
        FOREIGN KEY (data_flow_id) REFERENCES data_flows (id) ON DELETE CASCADE,
    CONSTRAINT data_flow_runs_status_known CHECK (status IN ('pending', 'in_progress', 'success', 'failed')),
    CONSTRAINT data_flow_runs_ended_at_exactly_when_finished CHECK (
        (ended_at IS NOT NULL) = (status IN ('success', 'failed'))
    ),
    CONSTRAINT data_flow_runs_ended_at_not_before_started_at CHECK (ended_at >= started_at),
    CONSTRAINT data_flow_runs_pending_not_started CHECK (status <> 'pending' OR started_at IS NULL),
    CONSTRAINT data_flow_runs_in_progress_has_runner CHECK (
        status <> 'in_progress' OR (started_at IS NOT NULL AND runner_id IS NOT NULL)
    ),
    CONSTRAINT data_flow_runs_success_was_started CHECK (status <> 'success' OR started_at IS NOT NULL),
    CONSTRAINT data_flow_runs_timestamps_finite CHECK (
        least(scheduled_for, started_at, ended_at, created_at) >= '0001-01-02 00:00+00'
        AND greatest(scheduled_for, started_at, ended_at, created_at) <= '9999-12-30 00:00+00'
    )
) WITH (
    -- A fifth of some hundred million rows, the default, would be long in coming.
    autovacuum_vacuum_scale_factor = 0.02
);

CREATE UNIQUE INDEX data_flow_runs_one_live_run_per_flow
    ON data_flow_runs (data_flow_id) WITH (deduplicate_items = off) WHERE status IN ('pending', 'in_progress');

-- The runs that were asked for: without it each claim would read through all live runs to find them.
CREATE INDEX data_flow_runs_pending ON data_flow_runs (id) WHERE status = 'pending';

-- A flow's history, newest first; deleting a flow finds its runs by it.
CREATE INDEX data_flow_runs_by_flow
    ON data_flow_runs (data_flow_id, id) WITH (fillfactor = 50, deduplicate_items = off);

-- "Which runs did heartbeat 41 start?" Runs are inserted in the order of heartbeats, so block ranges suffice
-- and cost a claim next to nothing.
CREATE INDEX data_flow_runs_by_heartbeat ON data_flow_runs
    USING brin (heartbeat_id) WITH (pages_per_range = 32, autosummarize = on);

CREATE FUNCTION data_flow_runs_refuse_change() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.ended_at IS NULL THEN
        RAISE EXCEPTION 'run % has been started and cannot wait again', OLD.id
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'data_flow_runs_ended_is_final',
                  HINT = 'Set its status to failed and its ended_at to now(), then insert a new run.';
    END IF;
    RAISE EXCEPTION 'run % has ended and is never changed again', OLD.id
        USING ERRCODE = 'restrict_violation', CONSTRAINT = 'data_flow_runs_ended_is_final',
              HINT = 'Insert a new run, or delete this one.';
END
$$;

-- After the update, not before it. The statement fails either way; but a table that has any trigger before updates has
-- every row locked, and the lock written to the WAL, before each of them.
CREATE TRIGGER data_flow_runs_ended_is_final
    AFTER UPDATE ON data_flow_runs
    FOR EACH ROW WHEN (OLD.ended_at IS NOT NULL OR OLD.status = 'in_progress' AND NEW.status = 'pending')
    EXECUTE FUNCTION data_flow_runs_refuse_change();

COMMENT ON TABLE data_flow_runs IS
    'Every run of every flow. INSERT INTO data_flow_runs (data_flow_id) VALUES (…) asks for a run at the next '
    'heartbeat. Ended runs are pruned after HEARTBEAT_RETENTION_DAYS.';
COMMENT ON COLUMN data_flow_runs.id IS 'Number of the run. A flow''s runs are numbered in the order in which they ran.';
COMMENT ON COLUMN data_flow_runs.data_flow_id IS 'The flow; its runs are deleted with it.';
COMMENT ON COLUMN data_flow_runs.heartbeat_id IS
    'The heartbeat that started it; null while pending and for a run without a heartbeat. '
    'No foreign key: the two are pruned apart.';
COMMENT ON COLUMN data_flow_runs.runner_id IS
    'The process that runs it (data_flow_runners.id). No foreign key: history outlives processes.';
COMMENT ON COLUMN data_flow_runs.status IS
    'pending: asked for, waits for the next heartbeat; in_progress: claimed by a runner; success: run() returned; '
    'failed: anything else.';
COMMENT ON COLUMN data_flow_runs.scheduled_for IS
    'The next_run_at that the claim found; for a requested run, when it was asked for.';
COMMENT ON COLUMN data_flow_runs.started_at IS 'When a heartbeat claimed it; null while pending.';
COMMENT ON COLUMN data_flow_runs.ended_at IS 'When its end was recorded; set exactly when status is success or failed.';
COMMENT ON COLUMN data_flow_runs.duration IS 'ended_at - started_at, kept by the database.';
COMMENT ON COLUMN data_flow_runs.result IS 'What run() returned, as JSON; null if nothing.';
COMMENT ON COLUMN data_flow_runs.error IS 'Why it failed: the exception''s type and message, or what ended it.';
COMMENT ON COLUMN data_flow_runs.backtrace IS
    'The Python traceback, if there was one; long ones are cut in the middle.';
COMMENT ON COLUMN data_flow_runs.created_at IS 'When it was asked for or claimed.';
COMMENT ON INDEX data_flow_runs_one_live_run_per_flow IS
    'A flow never has two live runs; also finds the live ones.';
COMMENT ON INDEX data_flow_runs_pending IS 'Finds the runs that were asked for.';
COMMENT ON INDEX data_flow_runs_by_flow IS 'A flow''s history.';
COMMENT ON INDEX data_flow_runs_by_heartbeat IS 'A heartbeat''s runs.';
