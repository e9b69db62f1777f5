-- Gives recipients another chance whose delivery has a new budget: somebody redrove it, or replayed it.
-- Of whom nobody knows whether they were sent to, that person decided. Whom it was sent to stays so.
--
-- now timestamptz or null
-- ids uuid[]
-- A row for each recipient: id
WITH clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
),
known AS MATERIALIZED (
    SELECT d.id, d.event_slot, d.budget
    FROM (SELECT u.id FROM unnest(%(ids)s::uuid[]) AS u (id) ORDER BY u.id) i
    CROSS JOIN LATERAL (
        SELECT * FROM outbox.delivery d WHERE d.id = i.id
        OFFSET 0 FOR SHARE) d
),
begun AS (
    UPDATE outbox.email e SET budget = (SELECT k.budget FROM known k WHERE k.id = e.delivery_id)
    WHERE e.slot = ANY (ARRAY(SELECT k.event_slot FROM known k)) AND e.delivery_id = ANY (ARRAY(SELECT k.id FROM known k))
)
UPDATE outbox.email_recipient r SET state = 'queued', changed_at = (SELECT now FROM clock)
WHERE r.slot = ANY (ARRAY(SELECT k.event_slot FROM known k)) AND r.delivery_id = ANY (ARRAY(SELECT k.id FROM known k))
  AND r.state IN ('rejected', 'suppressed', 'sending', 'unknown')
RETURNING r.delivery_id AS id
