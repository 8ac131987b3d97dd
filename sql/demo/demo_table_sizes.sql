-- Statements of the demo flow TableSizes. (../data_flows.sql explains the format.)

-- name: create_table_sizes()#
-- Make the table where there is none. Only this flow does so, and a flow never runs twice at once.
CREATE TABLE IF NOT EXISTS demo_table_sizes (
    table_name  text        NOT NULL,
    measured_at timestamptz NOT NULL,
    bytes       bigint      NOT NULL,
    CONSTRAINT demo_table_sizes_pkey PRIMARY KEY (table_name, measured_at)
);
COMMENT ON TABLE demo_table_sizes IS 'How large the tables were, indexes included; a row for each change.';

-- name: record_table_sizes()^
-- Measure this schema's tables, and keep the sizes that are not what they last were.
WITH measured AS MATERIALIZED (
    SELECT class.relname::text AS table_name, pg_total_relation_size(class.oid) AS bytes
    FROM pg_class AS class
    WHERE class.relnamespace = current_schema()::regnamespace AND class.relkind IN ('r', 'p')
),
recorded AS (
    INSERT INTO demo_table_sizes (table_name, measured_at, bytes)
    SELECT measured.table_name, statement_timestamp(), measured.bytes
    FROM measured
    WHERE measured.bytes IS DISTINCT FROM (
        SELECT last.bytes
        FROM demo_table_sizes AS last
        WHERE last.table_name = measured.table_name
        ORDER BY last.measured_at DESC
        LIMIT 1
    )
    RETURNING table_name
)
SELECT
    count(*) AS tables,
    (SELECT count(*) FROM recorded) AS changed,
    sum(bytes)::bigint AS bytes
FROM measured;
