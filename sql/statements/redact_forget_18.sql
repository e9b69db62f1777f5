-- Drops the statistics of one column, on PostgreSQL 18 and newer.
--
-- table_name, column_name text, inherited boolean
SELECT pg_clear_attribute_stats('outbox', %(table_name)s::text, %(column_name)s::text, %(inherited)s::boolean)
