DROP VIEW heartbeat_log;
DROP VIEW data_flow_run_log;
DROP VIEW data_flow_status;
