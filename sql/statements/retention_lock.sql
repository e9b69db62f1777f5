-- One daemon at a time tends to retention; the others find it taken. Released at the end of the
-- transaction.
--
-- One row: taken (boolean)
SELECT pg_catalog.pg_try_advisory_xact_lock(78610003) AS taken
