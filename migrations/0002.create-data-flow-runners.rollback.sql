DROP FUNCTION data_flow_runner_is_dead(timestamptz, float8);
DROP TABLE data_flow_runners;
