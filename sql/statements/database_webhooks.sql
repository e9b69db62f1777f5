-- The triggers of Supabase's database webhooks, as the dashboard and the documentation make them:
-- they call supabase_functions.http_request(url, method, headers, params, timeout). Copies on
-- partitions belong to their parent's.
--
-- Rows: schema, table, trigger, kind (tgtype), columns (of UPDATE OF), enabled, arguments (bytea,
-- each ended by a zero byte), definition (text)
SELECT n.nspname, c.relname, t.tgname, t.tgtype::int,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = t.tgrelid AND a.attnum = ANY (t.tgattr::int2[]) ORDER BY a.attnum),
       t.tgenabled IN ('O', 'A'), t.tgargs, pg_catalog.pg_get_triggerdef(t.oid)
FROM pg_catalog.pg_trigger t
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
JOIN pg_catalog.pg_namespace f ON f.oid = p.pronamespace
JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND f.nspname = 'supabase_functions' AND p.proname = 'http_request'
ORDER BY 1, 2, 3
