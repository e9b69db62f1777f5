-- The events of deliveries, whether they live, are dead or have ended.
--
-- ids uuid[], org_id text or null: only deliveries of this organization
-- A row each for what is known: id, event_id
SELECT i.id, x.event_id FROM unnest(%(ids)s::uuid[]) i (id) CROSS JOIN LATERAL (
    SELECT d.event_id, d.org_id FROM outbox.delivery d WHERE d.id = i.id
    UNION ALL
    SELECT d.event_id, d.org_id FROM outbox.dead_letter d WHERE d.id = i.id
    UNION ALL
    SELECT j.event_id, j.org_id FROM outbox.journal j WHERE j.delivery_id = i.id
    LIMIT 1) x
WHERE %(org_id)s::text IS NULL OR x.org_id = %(org_id)s::text
