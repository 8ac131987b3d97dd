DROP TABLE data_flows;
DROP FUNCTION data_flows_set_next_run_at();
DROP FUNCTION data_flows_set_updated_at();
