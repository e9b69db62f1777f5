-- How this role can write messages: as rows, or by the function alone.
--
-- One row: rows, reads (boolean: it may look at them), function (boolean)
SELECT coalesce(has_table_privilege(m.oid, 'INSERT') AND NOT row_security_active(m.oid)
           AND (SELECT count(*) = 8 FROM pg_catalog.pg_attribute a WHERE a.attrelid = m.oid AND a.attname IN (
               'id', 'topic', 'extension', 'payload', 'event', 'private', 'inserted_at', 'updated_at')), false) AS rows,
       coalesce(has_table_privilege(m.oid, 'SELECT') AND NOT row_security_active(m.oid), false) AS reads,
       coalesce(has_schema_privilege(f.space, 'USAGE') AND has_function_privilege(f.oid, 'EXECUTE'), false) AS function
FROM (SELECT (SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
              WHERE n.nspname = 'realtime' AND c.relname = 'messages'
                AND has_schema_privilege(n.oid, 'USAGE')) AS oid) m,
     (SELECT (SELECT p.oid FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
              WHERE n.nspname = 'realtime' AND p.proname = 'send' AND p.pronargs = 4 LIMIT 1) AS oid,
             (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = 'realtime') AS space) f
