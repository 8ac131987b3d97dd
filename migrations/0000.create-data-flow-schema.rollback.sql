DROP TABLE data_flow_schema;
