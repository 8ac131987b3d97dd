DROP TABLE data_flow_runs;
DROP FUNCTION data_flow_runs_refuse_change();
