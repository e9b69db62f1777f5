-- Taken first in every batch of a replay: whoever holds it sees settled configuration and no other
-- replay, while relays go on. Released at the end of the transaction.
SELECT pg_catalog.pg_advisory_xact_lock(78610004)
