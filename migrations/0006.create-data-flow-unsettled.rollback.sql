DROP TRIGGER data_flow_runs_deleted_live ON data_flow_runs;
DROP TRIGGER data_flow_runs_ended_untold ON data_flow_runs;
DROP FUNCTION data_flow_runs_note_unsettled();
DROP TABLE data_flow_unsettled;
