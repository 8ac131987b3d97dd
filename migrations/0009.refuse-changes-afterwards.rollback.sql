DROP TRIGGER data_flow_runs_ended_is_final ON data_flow_runs;

CREATE TRIGGER data_flow_runs_ended_is_final
    BEFORE UPDATE ON data_flow_runs
    FOR EACH ROW WHEN (OLD.ended_at IS NOT NULL)
    EXECUTE FUNCTION data_flow_runs_refuse_change();
