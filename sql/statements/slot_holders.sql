-- Transactions that hold a lock on a slot. Seen twice in a row, they are long ones: emptying the
-- slot would have to queue behind them, and everybody else behind the emptying.
--
-- tables  text[]: names in schema outbox
-- One row: holders (text[])
SELECT coalesce(array_agg(DISTINCT l.virtualtransaction), '{}') AS holders
FROM pg_catalog.pg_locks l
WHERE l.locktype = 'relation'
  AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
  AND l.relation IN (SELECT pg_catalog.to_regclass('outbox.' || t) FROM unnest(%(tables)s::text[]) t)
  AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
