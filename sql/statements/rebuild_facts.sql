-- All facts about some deliveries, in order of time. What a delivery was born as stands in the
-- `routed` fact of its event, which lists them all.
--
-- event_ids bigint[], ids uuid[]: pairs
-- A row each: delivery_id, fact, at, attempt, charged, budget, reason, due_at, subscription_id,
-- revision, detail (of those that hold a state, a generation or the last answer)
WITH wanted AS MATERIALIZED (
    SELECT u.event_id, u.id FROM unnest(%(event_ids)s::bigint[], %(ids)s::uuid[]) u (event_id, id)
)
SELECT f.* FROM (
    SELECT i.delivery AS delivery_id, 'routed' AS fact, r.at, 0 AS attempt, false AS charged, 1 AS budget,
           i.held AS reason, i.due_at, i.subscription AS subscription_id, i.revision, NULL::jsonb AS detail
    FROM (SELECT DISTINCT w.event_id FROM wanted w) e
    CROSS JOIN LATERAL (
        SELECT j.at, j.detail FROM outbox.journal j
        WHERE j.event_id = e.event_id AND j.fact = 'routed' AND j.detail IS NOT NULL
        OFFSET 0) r
    CROSS JOIN LATERAL jsonb_to_recordset(r.detail)
        AS i (delivery uuid, subscription bigint, revision int, held text, due_at timestamptz)
    WHERE i.delivery = ANY (%(ids)s::uuid[])
    UNION ALL
    SELECT w.id, j.fact, j.at, coalesce(j.attempt, 0), coalesce(j.charged, false), coalesce(j.budget, 1),
           j.reason, j.due_at, j.subscription_id, j.revision, j.detail
    FROM wanted w CROSS JOIN LATERAL (
        SELECT j.fact, j.at, j.attempt, j.charged, j.budget, j.reason, j.due_at, j.subscription_id, j.revision,
               CASE WHEN j.fact IN ('carried', 'replayed', 'dead', 'expired') THEN j.detail END AS detail
        FROM outbox.journal j WHERE j.delivery_id = w.id
        OFFSET 0) j) f
ORDER BY f.delivery_id, f.at, f.fact <> 'routed'
