-- Rows of live deliveries.
--
-- ids uuid[]
-- A row each: id, then as in outbox/store/rebuild_fold.py, LIVE_COLUMNS
SELECT d.id, d.event_id, d.event_slot, d.subscription_id, d.revision, d.generation, d.lane, d.org_id, d.order_key,
       d.attempts, d.budget, d.expiries, d.expires_at, d.state, d.due_at, d.age_limit_at, d.held_at, d.held_reason, d.again
FROM outbox.delivery d WHERE d.id = ANY (%(ids)s::uuid[])
