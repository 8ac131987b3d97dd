-- Statements of the demo flow ImportCsv. (../data_flows.sql explains the format.)

-- name: create_csv_tables()#
-- Make the tables where there are none. Only this flow does so, and a flow never runs twice at once.
CREATE TABLE IF NOT EXISTS demo_csv_files (
    file        text        NOT NULL,
    lines       bigint      NOT NULL DEFAULT 0,
    bytes       bigint      NOT NULL DEFAULT 0,
    sha256      text        NOT NULL DEFAULT '',
    imported_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT demo_csv_files_pkey PRIMARY KEY (file)
);
COMMENT ON TABLE demo_csv_files IS
    'How far each file has been imported: its first lines and bytes, and their checksum.';
CREATE TABLE IF NOT EXISTS demo_csv_rows (
    file text   NOT NULL,
    line bigint NOT NULL,
    data jsonb  NOT NULL,
    CONSTRAINT demo_csv_rows_pkey PRIMARY KEY (file, line)
);
COMMENT ON TABLE demo_csv_rows IS 'The imported rows, by the line on which each ends; data is column name to text.';

-- name: lock_csv_file(file)^
-- How far a file has been imported. Its row stays locked until the transaction ends: one import of a file at a time.
INSERT INTO demo_csv_files AS known (file)
VALUES (:file::text)
ON CONFLICT (file) DO UPDATE SET file = known.file
RETURNING lines, bytes, sha256;

-- name: add_csv_rows(file, line, data)*!
-- Insert rows of a file. A line that is there already is an error: nothing is imported twice.
INSERT INTO demo_csv_rows (file, line, data)
VALUES (:file::text, :line::bigint, :data::jsonb);

-- name: note_csv_file(file, lines, bytes, sha256)!
-- Note how far a file has been imported.
UPDATE demo_csv_files
SET lines = :lines::bigint, bytes = :bytes::bigint, sha256 = :sha256::text, imported_at = now()
WHERE file = :file::text;
