-- Statements of the demo flow InstalledDistributions. (../data_flows.sql explains the format.)

-- name: create_distributions()#
-- Make the table where there is none. Only this flow does so, and a flow never runs twice at once.
CREATE TABLE IF NOT EXISTS demo_distributions (
    name       text        NOT NULL,
    version    text        NOT NULL,
    changed_at timestamptz NOT NULL,
    removed_at timestamptz,
    CONSTRAINT demo_distributions_pkey PRIMARY KEY (name)
);
COMMENT ON TABLE demo_distributions IS
    'The Python distributions installed where the flows run; removed_at says since when one is gone.';

-- name: record_distributions(names, versions)^
-- Bring the inventory in line with what is installed now, and count what had changed.
WITH installed AS MATERIALIZED (
    SELECT * FROM unnest(:names::text[], :versions::text[]) AS given (name, version)
),
changed AS (
    INSERT INTO demo_distributions AS known (name, version, changed_at)
    SELECT installed.name, installed.version, statement_timestamp()
    FROM installed
    ON CONFLICT (name) DO UPDATE
    SET version = excluded.version, changed_at = excluded.changed_at, removed_at = NULL
    WHERE known.version <> excluded.version OR known.removed_at IS NOT NULL
    RETURNING name
),
removed AS (
    UPDATE demo_distributions AS known
    SET removed_at = statement_timestamp()
    WHERE known.removed_at IS NULL
        AND NOT EXISTS (SELECT FROM installed WHERE installed.name = known.name)
    RETURNING name
)
SELECT
    (SELECT count(*) FROM installed) AS installed,
    (SELECT count(*) FROM changed) AS changed,
    (SELECT count(*) FROM removed) AS removed;
