-- data_flow_schema: which migrations made this schema, by their text. Their ids stand in yoyo's own table; but until
-- 1.0.0 migrations are edited in place, and a schema that an earlier text made has the same ids and other tables.
-- It comes before all else, so that each migration notes itself here in its own transaction.

CREATE TABLE data_flow_schema (
    migration_id text NOT NULL,
    fingerprint  text NOT NULL,
    version      text NOT NULL,

    CONSTRAINT data_flow_schema_pkey PRIMARY KEY (migration_id)
);

COMMENT ON TABLE data_flow_schema IS
    'The migrations that made this schema, one row each. Written by `heartbeat migrate`; compared at every start.';
COMMENT ON COLUMN data_flow_schema.migration_id IS 'Name of the migration''s file, without .sql.';
COMMENT ON COLUMN data_flow_schema.fingerprint IS 'SHA-256 of its text, comments and blank lines left out.';
COMMENT ON COLUMN data_flow_schema.version IS 'The version of data-flow-heartbeat that applied it.';
