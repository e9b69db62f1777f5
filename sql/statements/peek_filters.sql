-- The filters that the first pending event above the floor would be judged by.
--
-- floor bigint
-- A row each: subscription_id, filter, slot, id
SELECT s.id AS subscription_id, s.filter, e.slot, e.id
FROM (SELECT p.id, p.slot FROM outbox.pending p WHERE p.id > %(floor)s::bigint ORDER BY p.id LIMIT 1) p
JOIN outbox.event e ON e.slot = p.slot AND e.id = p.id
JOIN outbox.subscription s ON (s.all_orgs OR s.org_id = e.org_id) AND s.state <> 'removed'
WHERE s.filter IS NOT NULL AND s.state_reason IS DISTINCT FROM 'filter_timeout'
  AND outbox.type_matches(e.type, s.likes, s.every)
