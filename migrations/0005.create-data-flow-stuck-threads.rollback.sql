DROP TABLE data_flow_stuck_threads;
