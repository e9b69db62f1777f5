-- Rows of dead letters.
--
-- ids uuid[]
-- A row each: id, then as in outbox/store/rebuild_fold.py, DEAD_COLUMNS
SELECT d.id, d.event_id, d.event_slot, d.subscription_id, d.revision, d.generation, d.lane, d.org_id, d.order_key,
       d.attempts, d.budget, d.expiries, d.expires_at, d.reason, d.detail, d.died_at
FROM outbox.dead_letter d WHERE d.id = ANY (%(ids)s::uuid[])
