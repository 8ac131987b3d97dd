DROP TABLE data_flow_runners;
