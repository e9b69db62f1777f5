-- Taken first in every transaction that leases deliveries: whoever holds it sees exact permits and
-- settled configuration. Released at the end of the transaction.
SELECT pg_catalog.pg_advisory_xact_lock(78610002)
