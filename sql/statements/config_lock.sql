-- The lock of configuration: taken first in every transaction that changes endpoints or
-- subscriptions, or what deliveries are judged by. It is the lock of replays and the dispatch lock, in
-- this order, so that no relay waits for a replay. Released at the end of the transaction.
SELECT pg_catalog.pg_advisory_xact_lock(78610004), pg_catalog.pg_advisory_xact_lock(78610002)
