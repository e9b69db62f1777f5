-- Drops the statistics of one column, before PostgreSQL 18: for a superuser alone.
--
-- table_name, column_name text, inherited boolean
DELETE FROM pg_statistic s
WHERE s.starelid = to_regclass('outbox.' || quote_ident(%(table_name)s::text))
  AND s.staattnum = (SELECT a.attnum FROM pg_attribute a
                     WHERE a.attrelid = s.starelid AND a.attname = %(column_name)s::text)
  AND s.stainherit = %(inherited)s::boolean
