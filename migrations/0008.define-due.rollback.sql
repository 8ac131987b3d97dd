DROP VIEW data_flows_waiting;
DROP FUNCTION data_flow_is_due(timestamptz, integer, timestamptz, float8);
