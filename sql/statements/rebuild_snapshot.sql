-- Begins what reads one snapshot of facts and projections, in a transaction of its own. TRUNCATE is
-- not seen by old snapshots as it should be: the locks keep retention off the slots meanwhile (it
-- waits for nobody and comes back), and are taken before the first look, which takes the snapshot.
-- Plans must not depend on statistics that were taken when a table was empty.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY;
SET LOCAL enable_seqscan = off;
SET LOCAL enable_bitmapscan = off;
SET LOCAL enable_sort = off;
SET LOCAL jit = off;
SET LOCAL timezone = 'UTC';
SET LOCAL statement_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0;
LOCK TABLE outbox.event, outbox.journal IN ACCESS SHARE MODE
