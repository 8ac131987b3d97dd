ALTER TABLE heartbeats
    DROP CONSTRAINT heartbeats_counts_not_negative,
    ADD CONSTRAINT heartbeats_counts_not_negative CHECK (
        flows_due >= 0 AND flows_triggered >= 0 AND flows_succeeded >= 0 AND flows_failed >= 0
    ),
    DROP CONSTRAINT heartbeats_timestamps_finite,
    ADD CONSTRAINT heartbeats_timestamps_finite CHECK (
        received_at     BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
        AND finished_at BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
    );

ALTER TABLE data_flow_runs
    DROP CONSTRAINT data_flow_runs_timestamps_finite,
    ADD CONSTRAINT data_flow_runs_timestamps_finite CHECK (
        scheduled_for  BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
        AND started_at BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
        AND ended_at   BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
        AND created_at BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
    );

ALTER TABLE data_flows
    DROP CONSTRAINT data_flows_name_not_blank,
    ADD CONSTRAINT data_flows_name_not_blank CHECK (
        btrim(name, E' \t\n\u000B\f\r\u001C\u001D\u001E\u001F\u0085\u00A0\u1680\u2000\u2001\u2002\u2003\u2004\u2005'
                    '\u2006\u2007\u2008\u2009\u200A\u200B\u2028\u2029\u202F\u205F\u2060\u3000\uFEFF') <> ''
    ),
    DROP CONSTRAINT data_flows_timestamps_finite,
    ADD CONSTRAINT data_flows_timestamps_finite CHECK (
        last_run_at     BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
        AND next_run_at BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
        AND created_at  BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
        AND updated_at  BETWEEN '0001-01-02 00:00+00' AND '9999-12-30 00:00+00'
    );
