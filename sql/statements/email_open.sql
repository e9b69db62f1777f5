-- The frozen messages of deliveries, and how their recipients stand; what was never frozen, or is no
-- delivery any more, is not among them.
--
-- ids uuid[]
-- A row each: id, slot, sender, smtputf8, mime, again (boolean: a redrive or replay gave it a new budget),
-- recipients (json: an array of [n, address, state, is it suppressed now])
--
-- OFFSET 0 and LIMIT 1 keep every look a look by key, whatever the statistics say.
SELECT u.id, e.slot, e.sender, e.smtputf8, e.mime, e.budget < d.budget AS again, r.recipients
FROM unnest(%(ids)s::uuid[]) AS u (id)
CROSS JOIN LATERAL (
    SELECT d.event_slot, d.budget, coalesce(d.org_id, '') AS org FROM outbox.delivery d WHERE d.id = u.id OFFSET 0) d
CROSS JOIN LATERAL (
    SELECT e.* FROM outbox.email e WHERE e.slot = d.event_slot AND e.delivery_id = u.id OFFSET 0) e
CROSS JOIN LATERAL (
    SELECT json_agg(json_build_array(r.n, r.address, r.state, coalesce((
               SELECT true FROM outbox.suppression s WHERE s.org_id = d.org AND s.address = lower(r.address) LIMIT 1),
               false)) ORDER BY r.n) AS recipients
    FROM outbox.email_recipient r WHERE r.slot = d.event_slot AND r.delivery_id = u.id) r
