-- Refuse to change an ended run after the update instead of before it. The statement fails either way; but a table that has
-- any trigger before updates has every row locked, and the lock written to the WAL, before each of them.
-- depends: 0008.shorten-checks

DROP TRIGGER data_flow_runs_ended_is_final ON data_flow_runs;

CREATE TRIGGER data_flow_runs_ended_is_final
    AFTER UPDATE ON data_flow_runs
    FOR EACH ROW WHEN (OLD.ended_at IS NOT NULL)
    EXECUTE FUNCTION data_flow_runs_refuse_change();
