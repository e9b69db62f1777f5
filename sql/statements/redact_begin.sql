-- Says that this transaction redacts, which is what lets it change the log and the journal, and
-- locks the pending events among them. Whoever carries one is waited for: what he copied is then seen.
--
-- ids bigint[]
-- One row, of no interest
WITH unrouted AS MATERIALIZED (
    SELECT p.id FROM outbox.pending p WHERE p.id = ANY (%(ids)s::bigint[]) ORDER BY p.id FOR UPDATE
)
SELECT set_config('outbox.redaction', 'on', true), (SELECT count(*) FROM unrouted)
