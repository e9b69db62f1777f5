-- Bounds the statement that follows in this transaction: all relays wait for it, and a filter of
-- one organization may take arbitrarily long.
--
-- limit_ms int
SELECT pg_catalog.set_config('statement_timeout', %(limit_ms)s::int::text, true)
