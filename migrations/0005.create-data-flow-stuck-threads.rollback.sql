DROP TRIGGER data_flow_runs_truncated ON data_flow_runs;
DROP FUNCTION data_flow_runs_note_threads();
DROP TRIGGER data_flow_runs_deleted_by_hand ON data_flow_runs;
DROP TRIGGER data_flow_runs_ended_by_hand ON data_flow_runs;
DROP FUNCTION data_flow_runs_note_thread();
DROP TABLE data_flow_stuck_threads;
