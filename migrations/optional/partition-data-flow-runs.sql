-- Set ended runs aside in segments by time, for histories of some hundred million runs and more: dropping a segment then
-- replaces pruning, which deletes row by row. Optional: `heartbeat migrate` does not apply it, a DBA does, as the owner
-- of the tables (or a superuser); the service runs with it and without it:
--
--   psql -1 -v ON_ERROR_STOP=1 -f partition-data-flow-runs.sql "$HEARTBEAT_DATABASE_URL"
--
-- HOW. data_flow_runs as it is, with all its rows, becomes the first segment, data_flow_runs_until_<date and time, UTC>,
-- and a new data_flow_runs, with the live runs, takes its name, constraints, indexes, triggers, grants, comments, options
-- and views. The segment is its child (INHERITS), so that SELECT, UPDATE and DELETE reach its rows as before, and
-- data_flow_runs's own unique index still keeps a flow from having two live runs. No row but the live ones is copied, and
-- no statement in sql/ changes.
--
-- HOW LONG. Some 60 ms with 10,000,000 runs (4.2 GB): it does not depend on their number. It holds ACCESS EXCLUSIVE on
-- data_flow_runs and SHARE ROW EXCLUSIVE on data_flows meanwhile; heartbeats wait. It waits for locks for half a second,
-- twenty times, so that a forgotten transaction makes it give up instead of stopping the service.
--
-- THEN, and after every further segment, let Postgres know that the segment holds ended runs only: heartbeats no longer
-- look into it. (Until then each look-up of a live run probes one small index more a segment.) This reads the segment
-- once (11 s for 10,000,000 runs, not cached) and blocks neither reading nor writing; the name is the one shown:
--
--   ALTER TABLE data_flow_runs_until_… VALIDATE CONSTRAINT data_flow_runs_segment_has_ended;
--
-- THE NEXT SEGMENT, say each month, from cron with psql (not within one transaction):
--
--   SELECT format('ALTER TABLE %I VALIDATE CONSTRAINT data_flow_runs_segment_has_ended', data_flow_runs_close_segment())
--   \gexec
--
-- PRUNING is to drop the segments whose name says that they are old enough; 1.6 s for 10,000,000 runs, where deleting
-- 1,000,000 took 13 s and left their space to be vacuumed. HEARTBEAT_RETENTION_DAYS goes on deleting row by row, in
-- segments too: set it above what a segment spans and is kept for together (monthly, dropped after 30 days: 70), and it finds
-- no runs to delete, but prunes heartbeats. To drop one takes ACCESS EXCLUSIVE on data_flows for a moment:
--
--   SET lock_timeout = '500ms';
--   DROP TABLE data_flow_runs_until_…;
--
-- WHAT IT BREAKS. Ids are unique in each table by its primary key, across them because one sequence follows the other:
-- OVERRIDING SYSTEM VALUE could now repeat an id that stands in a segment. A publication, extended statistics, a
-- row-security policy, column grants or a materialized view of your own on data_flow_runs stay with the segment: make them anew.
-- TRUNCATE and SELECT … FROM ONLY data_flow_runs are not the same. A later migration that alters data_flow_runs
-- alters its segments too (ALTER TABLE reaches children); one that adds an index or a trigger does not reach them.
-- A DBA's \d+ data_flow_runs lists the segments as child tables. Undo: partition-data-flow-runs.rollback.sql.
--
-- WHY NOT PARTITION BY. Tried on PostgreSQL 18, by RANGE (ended_at) with live runs (null) in the default partition:
--   * a primary key and a unique index have to contain ended_at, so the table has neither (id) nor (data_flow_id);
--   * ON CONFLICT (data_flow_id) WHERE … in the claim finds no index, not one on the live partition alone nor one on
--     (data_flow_id, ended_at) NULLS NOT DISTINCT. Without a target, DO NOTHING works, with an edited sql/;
--   * two that end the same run at once: the second gets error 40001, "tuple to be locked was already moved to another
--     partition", which takes back the statement, a batch of outcomes; now it learns that somebody was first;
--   * ending a run is a DELETE and an INSERT, and the trigger data_flow_runs_deleted_live notes every flow as unsettled.

CREATE FUNCTION data_flow_runs_close_segment() RETURNS text
LANGUAGE plpgsql
-- Shorter than deadlock_timeout: where a heartbeat and this wait for each other, this gives way and tries again.
SET lock_timeout = '500ms'
AS $$
DECLARE
    segment  text := 'data_flow_runs_until_' || to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYYMMDD_HH24MISS');
    old      oid;
    segments text[];
    renames  text[];
    remake   text[];
    next_id  bigint;
    command  text;
BEGIN
    FOR attempt IN 1..20 LOOP
        BEGIN
            LOCK TABLE data_flows IN SHARE ROW EXCLUSIVE MODE;
            LOCK TABLE data_flow_runs IN ACCESS EXCLUSIVE MODE;
            old := 'data_flow_runs'::regclass;
            next_id := nextval(pg_get_serial_sequence('data_flow_runs', 'id'));

            -- What stands on the table, written down while the names are still its own.
            SELECT coalesce(array_agg(link.inhrelid::regclass::text), '{}') INTO segments
            FROM pg_inherits AS link WHERE link.inhparent = old;

            SELECT array_agg(format('ALTER INDEX %s RENAME TO %I', key.indexrelid::regclass,
                replace(name.relname, 'data_flow_runs', segment))) INTO renames
            FROM pg_index AS key JOIN pg_class AS name ON name.oid = key.indexrelid
            WHERE key.indrelid = old;

            SELECT array_agg(made.command ORDER BY made.step) INTO remake
            FROM (
                SELECT 1 AS step, format('ALTER TABLE data_flow_runs OWNER TO %I', pg_get_userbyid(relowner))
                FROM pg_class WHERE oid = old
                UNION ALL
                SELECT 1, format('ALTER TABLE data_flow_runs SET (%s)', array_to_string(reloptions, ', '))
                FROM pg_class WHERE oid = old AND reloptions IS NOT NULL
                UNION ALL
                SELECT 2, format('ALTER TABLE data_flow_runs ADD CONSTRAINT %I %s', conname, pg_get_constraintdef(oid))
                FROM pg_constraint WHERE conrelid = old AND contype IN ('p', 'u', 'f')
                UNION ALL
                SELECT 3, format('ALTER INDEX %I SET (%s)', conname, array_to_string(reloptions, ', '))
                FROM pg_constraint JOIN pg_class AS key ON key.oid = conindid
                WHERE conrelid = old AND contype IN ('p', 'u') AND key.reloptions IS NOT NULL
                UNION ALL
                SELECT 2, pg_get_indexdef(key.indexrelid)
                FROM pg_index AS key
                WHERE key.indrelid = old
                    AND NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = old AND conindid = key.indexrelid)
                UNION ALL
                SELECT 3, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = old AND NOT tgisinternal
                UNION ALL
                SELECT 4, format('COMMENT ON TABLE data_flow_runs IS %L', obj_description(old, 'pg_class'))
                UNION ALL
                SELECT 4, format('COMMENT ON INDEX %s IS %L', indexrelid::regclass, obj_description(indexrelid, 'pg_class'))
                FROM pg_index WHERE indrelid = old
                UNION ALL
                SELECT 4, format('GRANT %s ON data_flow_runs TO %s%s', given.privilege_type,
                    CASE WHEN given.grantee = 0 THEN 'PUBLIC' ELSE given.grantee::regrole::text END,
                    CASE WHEN given.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
                FROM pg_class AS class, aclexplode(class.relacl) AS given
                WHERE class.oid = old AND given.grantee <> class.relowner
                UNION ALL
                -- A view goes by number, not by name, and would stay with the old rows.
                SELECT DISTINCT 5, format('CREATE OR REPLACE VIEW %s%s AS %s', view.oid::regclass,
                    ' WITH (' || array_to_string(view.reloptions, ', ') || ')', pg_get_viewdef(view.oid))
                FROM pg_depend AS use
                JOIN pg_rewrite AS rule ON use.classid = 'pg_rewrite'::regclass AND use.objid = rule.oid
                JOIN pg_class AS view ON view.oid = rule.ev_class AND view.relkind = 'v'
                WHERE use.refclassid = 'pg_class'::regclass AND use.refobjid = old
            ) AS made (step, command);

            -- The table becomes a segment …
            EXECUTE format('ALTER TABLE data_flow_runs RENAME TO %I', segment);
            FOREACH command IN ARRAY renames LOOP
                EXECUTE command;
            END LOOP;
            EXECUTE format('ALTER TABLE %I ALTER id DROP IDENTITY', segment);

            -- … a new one takes its name, with the live runs …
            EXECUTE format('CREATE TABLE data_flow_runs (LIKE %I INCLUDING ALL EXCLUDING INDEXES EXCLUDING IDENTITY)', segment);
            EXECUTE format('ALTER TABLE data_flow_runs ALTER id ADD GENERATED ALWAYS AS IDENTITY (START WITH %s)', next_id);
            FOREACH command IN ARRAY remake LOOP
                EXECUTE command;
            END LOOP;
            EXECUTE format('ALTER TABLE %I DISABLE TRIGGER USER', segment);
            EXECUTE format(
                'WITH live AS (DELETE FROM %I WHERE status IN (''pending'', ''in_progress'') RETURNING *) '
                'INSERT INTO data_flow_runs (id, data_flow_id, heartbeat_id, runner_id, status, scheduled_for, started_at, created_at) '
                'OVERRIDING SYSTEM VALUE '
                'SELECT id, data_flow_id, heartbeat_id, runner_id, status, scheduled_for, started_at, created_at FROM live',
                segment
            );
            EXECUTE format('ALTER TABLE %I ENABLE TRIGGER USER', segment);

            -- … and every segment hangs on that.
            FOREACH command IN ARRAY segments LOOP
                EXECUTE format('ALTER TABLE %s NO INHERIT %I', command, segment);
                EXECUTE format('ALTER TABLE %s INHERIT data_flow_runs', command);
            END LOOP;
            EXECUTE format('ALTER TABLE %I INHERIT data_flow_runs', segment);
            EXECUTE format(
                'ALTER TABLE %I ADD CONSTRAINT data_flow_runs_segment_has_ended '
                'CHECK (ended_at IS NOT NULL AND status IN (''success'', ''failed'')) NOT VALID',
                segment
            );
            EXECUTE format('COMMENT ON TABLE %I IS ''Runs that had ended by the time in its name (UTC). Drop it when they are too old.''', segment);
            RETURN segment;
        EXCEPTION WHEN lock_not_available THEN
            IF attempt = 20 THEN
                RAISE;
            END IF;
            PERFORM pg_sleep(0.2);
        END;
    END LOOP;
END
$$;

COMMENT ON FUNCTION data_flow_runs_close_segment() IS
    'Set the ended runs aside as a table of their own, a child of data_flow_runs, and return its name. Validate its constraint afterwards.';

SELECT data_flow_runs_close_segment() AS segment;
