-- What keeps row versions that a transaction replaced: sessions of this database, prepared
-- transactions and replication slots that are older.
--
-- xid text
-- A row each: holder (text)
SELECT 'session ' || a.pid || coalesce(' (' || nullif(a.application_name, '') || ')', '') AS holder
FROM pg_stat_activity a
WHERE a.pid <> pg_backend_pid() AND coalesce(a.datname = current_database(), true)
  AND greatest(age(a.backend_xmin), age(a.backend_xid)) > age(%(xid)s::text::xid)
UNION ALL
SELECT 'prepared transaction ' || p.gid FROM pg_prepared_xacts p
WHERE p.database = current_database() AND age(p.transaction) > age(%(xid)s::text::xid)
UNION ALL
SELECT 'replication slot ' || s.slot_name FROM pg_replication_slots s
WHERE greatest(age(s.xmin), age(s.catalog_xmin)) > age(%(xid)s::text::xid)
