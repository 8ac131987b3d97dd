-- What "due" means, once for all statements: a flow in data_flows_waiting for which data_flow_is_due is true.
-- depends: 0007.create-status-views

-- next_run_at is compared twice. The first comparison is the one that an index on next_run_at can answer; the second is
-- the rule, which an index cannot: the tolerance counts for at most a tenth of the flow's own interval, so that a flow
-- of five seconds is not half a second early each time.
-- Without SET, and of built-ins alone, so that the planner puts its body in the place of a call.
CREATE FUNCTION data_flow_is_due(
    next_run_at timestamptz, run_interval integer, as_of timestamptz, run_tolerance float8
) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT next_run_at <= as_of + run_tolerance * interval '1 second'
        AND next_run_at <= as_of + least(run_tolerance, run_interval * 0.1::float8) * interval '1 second'
$$;

-- A view and not a function, because claim locks its rows: FOR UPDATE on a view locks the rows of the tables in its
-- FROM, here data_flows alone; on a function it locks nothing and says nothing.
-- OFFSET 0 keeps a look-up from becoming a join (sql/data_flows.sql says why).
CREATE VIEW data_flows_waiting AS
SELECT flow.*
FROM data_flows AS flow
WHERE flow.enabled
    AND NOT EXISTS (
        SELECT FROM data_flow_runs AS live
        WHERE live.data_flow_id = flow.id AND live.status IN ('pending', 'in_progress')
        OFFSET 0
    )
    AND NOT EXISTS (SELECT FROM data_flow_stuck_threads AS stuck WHERE stuck.data_flow_id = flow.id OFFSET 0);

COMMENT ON FUNCTION data_flow_is_due(timestamptz, integer, timestamptz, float8) IS
    'Whether a flow''s turn has come at a moment, up to run_tolerance seconds early, at most a tenth of its interval.';
COMMENT ON VIEW data_flows_waiting IS
    'The flows that wait for their turn: enabled, without a live run, without a stuck thread.';
COMMENT ON COLUMN data_flows_waiting.id IS 'data_flows.id';
COMMENT ON COLUMN data_flows_waiting.name IS 'data_flows.name';
COMMENT ON COLUMN data_flows_waiting.description IS 'data_flows.description';
COMMENT ON COLUMN data_flows_waiting.enabled IS 'data_flows.enabled';
COMMENT ON COLUMN data_flows_waiting.configuration IS 'data_flows.configuration';
COMMENT ON COLUMN data_flows_waiting.class_name IS 'data_flows.class_name';
COMMENT ON COLUMN data_flows_waiting.run_interval IS 'data_flows.run_interval';
COMMENT ON COLUMN data_flows_waiting.run_timeout IS 'data_flows.run_timeout';
COMMENT ON COLUMN data_flows_waiting.last_run_at IS 'data_flows.last_run_at';
COMMENT ON COLUMN data_flows_waiting.last_run_status IS 'data_flows.last_run_status';
COMMENT ON COLUMN data_flows_waiting.next_run_at IS 'data_flows.next_run_at';
COMMENT ON COLUMN data_flows_waiting.created_at IS 'data_flows.created_at';
COMMENT ON COLUMN data_flows_waiting.updated_at IS 'data_flows.updated_at';
