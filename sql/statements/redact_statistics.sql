-- Statistics that ANALYZE leaves behind because the table is empty now; they hold sample values.
--
-- A row each: table_name, column_name, inherited
SELECT s.tablename AS table_name, s.attname AS column_name, s.inherited
FROM pg_stats s JOIN pg_class c ON c.relname = s.tablename AND c.relnamespace = 'outbox'::regnamespace
WHERE s.schemaname = 'outbox' AND c.reltuples <= 0
  AND (s.tablename ~ '^(event|journal)(_[0-7])?$' OR s.tablename IN ('dead_letter', 'dedupe', 'replay', 'artifact', 'progress'))
