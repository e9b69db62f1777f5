-- One slice of the log: the outline of each delivery's history, and events that are not where they
-- should be. An event is pending until it is routed; a fact about a delivery of it proves that too,
-- where the older ones are past retention.
--
-- after, upto  bigint: events after < id <= upto
-- A row each: kind, event_id, delivery_id, outline (text), n
--   history          outline: its facts in order of time (`routed:held`, `carried:scheduled`: born or
--                    carried in this state); n: 1 if it has a row in `delivery` or `dead_letter`
--   pending_missing  neither pending nor routed
--   pending_extra    pending although routed, or without its event
--   pending_wrong    pending under another slot or organization than its event's
--   events, facts    n: how many were read
WITH told AS MATERIALIZED (
    SELECT j.event_id, j.delivery_id, j.at, j.fact,
           CASE WHEN j.fact IN ('routed', 'carried') THEN j.detail END AS detail
    FROM outbox.journal j
    WHERE j.event_id > %(after)s::bigint AND j.event_id <= %(upto)s::bigint
),
facts AS (
    SELECT t.event_id, i.delivery AS delivery_id, t.at, 0 AS turn,
           CASE WHEN i.held IS NULL THEN 'routed' ELSE 'routed:held' END AS fact
    FROM told t CROSS JOIN LATERAL jsonb_to_recordset(t.detail) AS i (delivery uuid, held text)
    WHERE t.fact = 'routed' AND t.detail IS NOT NULL
    UNION ALL
    SELECT t.event_id, t.delivery_id, t.at, 1,
           CASE WHEN t.fact = 'carried' THEN 'carried:' || coalesce(t.detail ->> 'state', '') ELSE t.fact END
    FROM told t WHERE t.delivery_id IS NOT NULL
),
histories AS (
    SELECT f.event_id, f.delivery_id, string_agg(f.fact, ' ' ORDER BY f.at, f.turn) AS outline
    FROM facts f GROUP BY f.event_id, f.delivery_id
),
events AS MATERIALIZED (
    SELECT e.id, array_agg(e.slot) AS slots FROM generate_series(0, 7) AS ring (slot) CROSS JOIN LATERAL (
        SELECT e.id, e.slot FROM outbox.event e
        WHERE e.slot = ring.slot::smallint AND e.id > %(after)s::bigint AND e.id <= %(upto)s::bigint
        OFFSET 0) e
    GROUP BY e.id
),
placed AS (
    SELECT coalesce(e.id, p.id) AS id, CASE
               WHEN p.id IS NULL AND r.id IS NULL THEN 'pending_missing'
               WHEN p.id IS NOT NULL AND (r.id IS NOT NULL OR e.id IS NULL) THEN 'pending_extra'
               WHEN p.id IS NOT NULL AND (p.slot <> ALL (e.slots) OR p.org <> (
                   SELECT coalesce(x.org_id, '') FROM outbox.event x
                   WHERE x.slot = e.slots[1] AND x.id = e.id)) THEN 'pending_wrong' END AS kind
    FROM events e
    FULL JOIN (SELECT p.id, p.slot, p.org FROM outbox.pending p
               WHERE p.id > %(after)s::bigint AND p.id <= %(upto)s::bigint) p ON p.id = e.id
    LEFT JOIN (SELECT DISTINCT t.event_id AS id FROM told t
               WHERE t.fact = 'routed' OR t.delivery_id IS NOT NULL) r ON r.id = coalesce(e.id, p.id)
)
SELECT 'history' AS kind, h.event_id, h.delivery_id, h.outline,
       -- Not EXISTS: that could be answered by hashing a whole table, for each slice.
       coalesce((SELECT 1 FROM outbox.delivery d WHERE d.id = h.delivery_id LIMIT 1),
                (SELECT 1 FROM outbox.dead_letter d WHERE d.id = h.delivery_id LIMIT 1), 0) AS n
FROM histories h
UNION ALL
SELECT p.kind, p.id, NULL, NULL, 1 FROM placed p WHERE p.kind IS NOT NULL
UNION ALL
SELECT 'events', NULL, NULL, NULL, count(*)::int FROM events
UNION ALL
SELECT 'facts', NULL, NULL, NULL, count(*)::int FROM told
