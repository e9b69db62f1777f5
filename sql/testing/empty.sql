-- Takes every row that an application, a daemon or an operator has written, and leaves the schema
-- as it was migrated: the database of one test becomes that of the next, at a fraction of what a
-- new one costs. For databases made by `outbox.testing` alone; needs a superuser, because the
-- triggers that keep the log append-only must not see it.
DO $$
DECLARE
    name text;
BEGIN
    PERFORM pg_catalog.set_config('session_replication_role', 'replica', true);
    FOR name IN
        SELECT c.relname FROM pg_catalog.pg_class c
        WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
          AND c.relname NOT IN ('installation', 'migration', 'ring')
    LOOP
        EXECUTE pg_catalog.format('DELETE FROM outbox.%I', name);
    END LOOP;
END
$$
