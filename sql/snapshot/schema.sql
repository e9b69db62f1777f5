-- The schema as text, one line an object, the same on every PostgreSQL version: what
-- schema.txt holds. Roles that are not ours appear as `installer`; what an owner may do to its own
-- objects is left out.
WITH names AS (
    SELECT r.oid, CASE WHEN r.rolname LIKE 'outbox\_%' THEN r.rolname::text ELSE 'installer' END AS role
    FROM pg_catalog.pg_roles r
    UNION ALL SELECT 0, 'PUBLIC'
),
objects AS (
    SELECT c.oid, c.relname::text AS name, c.relkind, c.relowner, c.reloptions, c.relacl,
           CASE c.relkind WHEN 'S' THEN 'sequence' WHEN 'i' THEN 'index' WHEN 'I' THEN 'index'
                          WHEN 'v' THEN 'view' ELSE 'table' END AS kind
    FROM pg_catalog.pg_class c
    WHERE c.relnamespace = 'outbox'::regnamespace AND c.relkind IN ('r', 'p', 'S', 'i', 'I', 'v')
),
lines AS (
    SELECT o.name AS subject, 0 AS part, concat_ws(' ', o.kind, o.name, 'owner', n.role,
           CASE WHEN o.relkind IN ('p', 'I') THEN 'partitioned ' || coalesce(pg_catalog.pg_get_partkeydef(o.oid), '') END,
           (SELECT 'partition ' || pg_catalog.pg_get_expr(c.relpartbound, c.oid) FROM pg_catalog.pg_class c
            WHERE c.oid = o.oid AND c.relispartition AND c.relpartbound IS NOT NULL),
           'with ' || nullif(array_to_string(ARRAY(SELECT unnest(o.reloptions) ORDER BY 1), ','), '')) AS line
    FROM objects o JOIN names n ON n.oid = o.relowner WHERE o.kind <> 'index'
    UNION ALL
    -- Versions put different numbers of parentheses around an expression.
    SELECT t.relname, 3, replace(replace(pg_catalog.pg_get_indexdef(i.indexrelid), '(((', '(('), ')))', '))')
           || coalesce(' with ' || array_to_string(o.reloptions, ','), '')
    FROM objects o JOIN pg_catalog.pg_index i ON i.indexrelid = o.oid JOIN pg_catalog.pg_class t ON t.oid = i.indrelid
    UNION ALL
    SELECT o.name, 0, concat_ws(' ', 'sequence', o.name, q.data_type, 'min', q.min_value, 'max', q.max_value,
           'start', q.start_value, 'cache', q.cache_size, 'cycle', q.cycle)
    FROM objects o JOIN pg_catalog.pg_sequences q ON q.schemaname = 'outbox' AND q.sequencename = o.name
    UNION ALL
    SELECT o.name, 1, concat_ws(' ', 'column', lpad(a.attnum::text, 2, '0'), a.attname,
           pg_catalog.format_type(a.atttypid, a.atttypmod), 'collate ' || nullif(l.collname, 'default'),
           CASE WHEN a.attnotnull THEN 'not null' END, 'default ' || pg_catalog.pg_get_expr(d.adbin, d.adrelid),
           'identity ' || nullif(a.attidentity::text, ''))
    FROM objects o JOIN pg_catalog.pg_attribute a ON a.attrelid = o.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation
    LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = o.oid AND d.adnum = a.attnum
    WHERE o.kind IN ('table', 'view')
    UNION ALL
    SELECT o.name, 1, 'definition ' || pg_catalog.md5(pg_catalog.pg_get_viewdef(o.oid)) FROM objects o WHERE o.kind = 'view'
    UNION ALL
    -- Without the constraints that PostgreSQL 18 keeps for NOT NULL.
    SELECT o.name, 2, concat_ws(' ', 'constraint', c.conname, pg_catalog.pg_get_constraintdef(c.oid, true))
    FROM objects o JOIN pg_catalog.pg_constraint c ON c.conrelid = o.oid AND c.contype <> 'n'
    UNION ALL
    SELECT o.name, 4, concat_ws(' ', 'trigger', pg_catalog.pg_get_triggerdef(t.oid), 'enabled', t.tgenabled)
    FROM objects o JOIN pg_catalog.pg_trigger t ON t.tgrelid = o.oid
    WHERE t.tgfoid IN (SELECT p.oid FROM pg_catalog.pg_proc p WHERE p.pronamespace = 'outbox'::regnamespace)
    UNION ALL
    SELECT o.name, 4, concat_ws(' ', 'policy', p.polname, p.polcmd, pg_catalog.pg_get_expr(p.polqual, p.polrelid))
    FROM objects o JOIN pg_catalog.pg_policy p ON p.polrelid = o.oid
    UNION ALL
    SELECT o.name, 5, concat_ws(' ', 'grant to', n.role, string_agg(x.privilege_type, ', ' ORDER BY x.privilege_type))
    FROM objects o CROSS JOIN LATERAL pg_catalog.aclexplode(o.relacl) x JOIN names n ON n.oid = x.grantee
    WHERE x.grantee <> o.relowner GROUP BY o.name, n.role
    UNION ALL
    SELECT o.name, 6, concat_ws(' ', 'grant to', n.role, 'on column', a.attname,
           string_agg(x.privilege_type, ', ' ORDER BY x.privilege_type))
    FROM objects o JOIN pg_catalog.pg_attribute a ON a.attrelid = o.oid
    CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) x JOIN names n ON n.oid = x.grantee
    GROUP BY o.name, n.role, a.attname
    UNION ALL
    SELECT '(' || p.proname || pg_catalog.pg_get_function_identity_arguments(p.oid), 7, concat_ws(' ',
           'function', p.proname || '(' || pg_catalog.pg_get_function_arguments(p.oid) || ')',
           'returns', pg_catalog.pg_get_function_result(p.oid), 'language', l.lanname, 'owner', n.role,
           CASE p.provolatile WHEN 'i' THEN 'immutable' WHEN 's' THEN 'stable' ELSE 'volatile' END,
           CASE WHEN p.proisstrict THEN 'strict' END, CASE WHEN p.prosecdef THEN 'definer' END,
           'parallel ' || p.proparallel::text, 'set ' || array_to_string(p.proconfig, ','), 'body', pg_catalog.md5(p.prosrc))
    FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang JOIN names n ON n.oid = p.proowner
    WHERE p.pronamespace = 'outbox'::regnamespace
    UNION ALL
    SELECT '(' || p.proname || pg_catalog.pg_get_function_identity_arguments(p.oid), 8,
           concat_ws(' ', 'grant to', n.role, string_agg(x.privilege_type, ', '))
    FROM pg_catalog.pg_proc p
    CROSS JOIN LATERAL pg_catalog.aclexplode(coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner))) x
    JOIN names n ON n.oid = x.grantee
    WHERE p.pronamespace = 'outbox'::regnamespace AND x.grantee <> p.proowner
    GROUP BY p.oid, p.proname, n.role
    UNION ALL
    SELECT '', 0, concat_ws(' ', 'schema outbox grant to', n.role, string_agg(x.privilege_type, ', ' ORDER BY x.privilege_type))
    FROM pg_catalog.pg_namespace s CROSS JOIN LATERAL pg_catalog.aclexplode(s.nspacl) x JOIN names n ON n.oid = x.grantee
    WHERE s.nspname = 'outbox' AND x.grantee <> s.nspowner GROUP BY n.role
    UNION ALL
    SELECT '', 1, concat_ws(' ', 'role', r.rolname, CASE WHEN r.rolcanlogin THEN 'login' ELSE 'nologin' END,
           CASE WHEN r.rolsuper THEN 'superuser' END, CASE WHEN r.rolbypassrls THEN 'bypassrls' END,
           CASE WHEN r.rolcreaterole OR r.rolcreatedb OR r.rolreplication THEN 'privileged' END)
    FROM pg_catalog.pg_roles r WHERE r.rolname IN ('outbox_owner', 'outbox_writer', 'outbox_daemon', 'outbox_reader')
)
SELECT CASE WHEN part IN (0, 7) THEN line ELSE '    ' || line END
FROM lines ORDER BY subject COLLATE "C", part, line COLLATE "C"
