-- data_flows: what is to run, and when. A DBA edits this table by hand, so the database itself refuses
-- wrong values and keeps next_run_at.
--
-- The checks are few and short. Postgres reads their text anew for every statement that writes to the table, and
-- evaluates them for every row: spelled out at length they were a fifth of the server's work in a heartbeat with
-- nothing to do.
--
-- Its indexes, and those of data_flow_runs, leave room where entries come twice: a flow's with each claim, a run's with
-- its claim and with its end. In a full page Postgres first looks for dead entries to take out and for equal ones to
-- pack together, finds none (the first versions died in the same transaction), and then splits the page all the same.
-- Measured: 7 % of the server's work for a no-op run.
-- depends: 0000.create-data-flow-schema

CREATE TABLE data_flows (
    id              bigint      GENERATED ALWAYS AS IDENTITY,
    name            text        NOT NULL,
    description     text,
    enabled         boolean     NOT NULL DEFAULT true,
    configuration   jsonb       NOT NULL DEFAULT '{}',
    class_name      text        GENERATED ALWAYS AS (coalesce(configuration ->> 'class_name', name)) STORED,
    run_interval    integer     NOT NULL,
    run_timeout     integer,
    last_run_at     timestamptz,
    last_run_status text,
    next_run_at     timestamptz NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),

    CONSTRAINT data_flows_pkey PRIMARY KEY (id) WITH (fillfactor = 50, deduplicate_items = off),
    CONSTRAINT data_flows_name_unique UNIQUE (name) WITH (fillfactor = 50, deduplicate_items = off),
    -- A name whose first character is printable ASCII is not blank: most are settled by that, without a look at the
    -- list. Its characters are spelled out because what [[:space:]] matches depends on the database's locale (and the
    -- vertical tab by its number: PostgreSQL 15 does not know it by its letter).
    CONSTRAINT data_flows_name_not_blank CHECK (
        ascii(name) BETWEEN 33 AND 126
        OR btrim(name, E' \t\n\u000B\f\r\u001C\u001D\u001E\u001F\u0085\u00A0\u1680\u2000\u2001\u2002\u2003\u2004\u2005'
                       '\u2006\u2007\u2008\u2009\u200A\u200B\u2028\u2029\u202F\u205F\u2060\u3000\uFEFF') <> ''
    ),
    CONSTRAINT data_flows_name_at_most_200_characters CHECK (char_length(name) <= 200),
    CONSTRAINT data_flows_configuration_is_object CHECK (jsonb_typeof(configuration) = 'object'),
    CONSTRAINT data_flows_run_interval_positive CHECK (run_interval > 0),
    CONSTRAINT data_flows_run_interval_at_most_ten_years CHECK (run_interval <= 315576000),
    CONSTRAINT data_flows_run_timeout_positive CHECK (run_timeout > 0),
    CONSTRAINT data_flows_run_timeout_at_most_ten_years CHECK (run_timeout <= 315576000),
    CONSTRAINT data_flows_last_run_status_known CHECK (
        last_run_status IN ('pending', 'in_progress', 'success', 'failed')
    ),
    -- Infinity, and years that most programs cannot read, would break whoever loads the row.
    CONSTRAINT data_flows_timestamps_finite CHECK (
        least(last_run_at, next_run_at, created_at, updated_at) >= '0001-01-02 00:00+00'
        AND greatest(last_run_at, next_run_at, created_at, updated_at) <= '9999-12-30 00:00+00'
    )
) WITH (
    -- Half a page is left for the next run's two versions of each row: the second, with the outcome, then needs no
    -- new index entries (a HOT update). Measured: 12 % less CPU and 20 % less WAL for a run that does nothing.
    fillfactor = 50,
    -- Every claim leaves a dead entry at the front of data_flows_due, where the next heartbeat begins to read.
    autovacuum_vacuum_scale_factor = 0.05
);

-- What a heartbeat asks for: the enabled flows, oldest first.
-- Entries are not deduplicated: flows claimed together share a next_run_at, and taking the dead ones out of a shared
-- entry was a quarter of the server's time in a drain.
CREATE INDEX data_flows_due ON data_flows (next_run_at) WITH (deduplicate_items = off) WHERE enabled;

CREATE FUNCTION data_flows_set_next_run_at() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.next_run_at := coalesce(NEW.last_run_at + NEW.run_interval * interval '1 second', now());
    RETURN NEW;
END
$$;

CREATE TRIGGER data_flows_next_run_at_on_insert
    BEFORE INSERT ON data_flows
    FOR EACH ROW WHEN (NEW.next_run_at IS NULL)
    EXECUTE FUNCTION data_flows_set_next_run_at();

-- A statement that changes next_run_at itself means what it says. The service's claim always sets it, also to what it
-- was (a hold), which a trigger cannot see: it says so in heartbeat.keeps_schedule.
CREATE TRIGGER data_flows_next_run_at_on_update
    BEFORE UPDATE OF run_interval, last_run_at, next_run_at ON data_flows
    FOR EACH ROW WHEN (
        NEW.next_run_at IS NULL
        OR (NEW.next_run_at = OLD.next_run_at
            AND (NEW.run_interval <> OLD.run_interval OR NEW.last_run_at IS DISTINCT FROM OLD.last_run_at)
            AND current_setting('heartbeat.keeps_schedule', true) IS DISTINCT FROM 'on')
    )
    EXECUTE FUNCTION data_flows_set_next_run_at();

CREATE FUNCTION data_flows_set_updated_at() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;

-- Only columns that people edit are named: a claim and an outcome do not pay for this.
CREATE TRIGGER data_flows_updated_at
    BEFORE UPDATE OF name, description, enabled, configuration, run_interval, run_timeout ON data_flows
    FOR EACH ROW EXECUTE FUNCTION data_flows_set_updated_at();

COMMENT ON TABLE data_flows IS
    'What is to run and when: one row a flow. Edit it freely; every change takes effect at the next heartbeat.';
COMMENT ON COLUMN data_flows.id IS 'Number of the flow, given by the database.';
COMMENT ON COLUMN data_flows.name IS
    'Unique, not blank, at most 200 characters. Also the class that runs, unless configuration has a class_name.';
COMMENT ON COLUMN data_flows.description IS 'For people. Nothing reads it.';
COMMENT ON COLUMN data_flows.enabled IS
    'False pauses the schedule; a run that goes on is not stopped. A run asked for by hand runs all the same.';
COMMENT ON COLUMN data_flows.configuration IS
    'A JSON object handed to the flow at every run. Its class_name, if any, names the registered class.';
COMMENT ON COLUMN data_flows.class_name IS
    'The registered class that runs: configuration''s class_name, else the name. Kept by the database.';
COMMENT ON COLUMN data_flows.run_interval IS 'Seconds from one run to the next; 1 to ten years.';
COMMENT ON COLUMN data_flows.run_timeout IS
    'Seconds that a run may take before it is failed; null for the service''s HEARTBEAT_RUN_TIMEOUT.';
COMMENT ON COLUMN data_flows.last_run_at IS
    'When the heartbeat that claimed the last run began (a run without a heartbeat: when it was claimed). '
    'Written by the claim.';
COMMENT ON COLUMN data_flows.last_run_status IS
    'Status of the last run: pending, in_progress, success or failed; null if none. '
    'Written by the claim and the outcome.';
COMMENT ON COLUMN data_flows.next_run_at IS
    'When the flow is next due. Set to now() to run at the next heartbeat, to a later time to hold. '
    'Kept by the database: last_run_at + run_interval when either changes.';
COMMENT ON COLUMN data_flows.created_at IS 'When the row was inserted.';
COMMENT ON COLUMN data_flows.updated_at IS
    'When name, description, enabled, configuration, run_interval or run_timeout last changed; runs do not touch it.';
COMMENT ON INDEX data_flows_due IS 'Finds the due flows, oldest first.';
