-- What the row of a delivery takes from its event and its subscription.
--
-- ids uuid[], event_ids bigint[], subscription_ids bigint[], revisions int[]: one of each a delivery;
--     the revision is the one that it was born with
-- A row each for what still has its event and its subscription: id, slots (smallint[], newest
-- first: a carried event may stand twice), created_at, expires_at, org_id, lane, max_age_s,
-- max_age_again_s (for a fresh budget: as the subscription is now), order_key, redacted (boolean: its
-- key can no longer be told)
SELECT w.id, e.slots, e.created_at,
       outbox.expiry(e.expires_at, e.deliver_at, e.created_at, s.delay, s.ttl) AS expires_at, e.org_id, s.lane,
       coalesce(r.max_age_s, s.max_age_s) AS max_age_s, s.max_age_s AS max_age_again_s, o.order_key,
       coalesce(o.redacted, false) AS redacted
FROM unnest(%(ids)s::uuid[], %(event_ids)s::bigint[], %(subscription_ids)s::bigint[], %(revisions)s::int[])
    AS w (id, event_id, subscription_id, revision)
CROSS JOIN LATERAL (
    SELECT s.lane, s.order_mode, s.key, s.delay, s.ttl, extract(epoch FROM s.max_age)::float8 AS max_age_s
    FROM outbox.subscription s WHERE s.id = w.subscription_id
    OFFSET 0) s
CROSS JOIN LATERAL (
    SELECT min(e.created_at) AS created_at, min(e.expires_at) AS expires_at,
           min(e.deliver_at) AS deliver_at, min(e.org_id) AS org_id,
           array_agg(e.slot ORDER BY (e.slot - ring.current + 15) %% 8 DESC) AS slots
    FROM (SELECT last_value::int AS current FROM outbox.ring_slot) ring, generate_series(0, 7) AS n (slot)
    CROSS JOIN LATERAL (
        SELECT e.slot, e.created_at, e.expires_at, e.deliver_at, e.org_id FROM outbox.event e
        WHERE e.slot = n.slot::smallint AND e.id = w.event_id
        OFFSET 0) e
    HAVING count(*) > 0) e
LEFT JOIN LATERAL (
    SELECT (r.config ->> 'max_age_s')::float8 AS max_age_s FROM outbox.subscription_revision r
    WHERE r.subscription_id = w.subscription_id AND r.revision = w.revision
    OFFSET 0) r ON true
LEFT JOIN LATERAL (
    SELECT outbox.turn_key(s.key, x.type, e.org_id, x.subject, x.ordering_key, x.payload) AS order_key,
           x.payload::text = outbox.tombstone()::text AS redacted
    FROM outbox.event x WHERE s.order_mode IS NOT NULL AND x.slot = e.slots[1] AND x.id = w.event_id
    OFFSET 0) o ON true
