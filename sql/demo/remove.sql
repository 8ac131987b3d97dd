-- Takes the demo out of a database again, its flows with their history and its tables: psql -f remove.sql

DELETE FROM data_flows
WHERE name IN ('TableSizes', 'InstalledDistributions', 'EventLoopLag', 'CountOrders', 'ImportCsv');

DROP TABLE IF EXISTS demo_table_sizes, demo_distributions, demo_orders, demo_csv_files, demo_csv_rows;
