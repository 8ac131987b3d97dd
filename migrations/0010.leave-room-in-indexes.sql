-- Leave room in the indexes whose entries come twice: a run's with its claim and with its end, a flow's with each claim.
-- In a full page Postgres first looks for dead entries to take out and for equal ones to pack together, finds none (the
-- first versions died in the same transaction), and then splits the page all the same. Measured: 7 % of the server's work
-- for a no-op run. Pages that are full already stay as they are; REINDEX, at a quiet time, loosens them.
-- depends: 0009.refuse-changes-afterwards

ALTER INDEX data_flow_runs_pkey SET (fillfactor = 50, deduplicate_items = off);
ALTER INDEX data_flow_runs_by_flow SET (fillfactor = 50, deduplicate_items = off);
ALTER INDEX data_flow_runs_one_live_run_per_flow SET (deduplicate_items = off);
ALTER INDEX data_flows_pkey SET (fillfactor = 50, deduplicate_items = off);
ALTER INDEX data_flows_name_unique SET (fillfactor = 50, deduplicate_items = off);
