ALTER INDEX data_flows_name_unique RESET (fillfactor, deduplicate_items);
ALTER INDEX data_flows_pkey RESET (fillfactor, deduplicate_items);
ALTER INDEX data_flow_runs_one_live_run_per_flow RESET (deduplicate_items);
ALTER INDEX data_flow_runs_by_flow RESET (fillfactor, deduplicate_items);
ALTER INDEX data_flow_runs_pkey RESET (fillfactor, deduplicate_items);
