-- Ends attempts that were delivered and bring about nothing more: nearly all. What settle.sql does with
-- them, for a quarter less. Fenced: only rows whose token still holds change. Rows are locked in order
-- of id, as everywhere, and reached by id alone: see take.sql.
--
-- now      timestamptz or null
-- ids      uuid[]
-- tokens   bigint[]
-- reasons  text[]
-- details  text[]: JSON or null
-- One row: settled (int), ours (uuid[]: which, null where it was all)
WITH clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now,
           (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
input AS MATERIALIZED (
    SELECT u.* FROM unnest(%(ids)s::uuid[], %(tokens)s::bigint[], %(reasons)s::text[], %(details)s::text[])
        AS u (id, token, reason, detail)
),
ended AS (
    DELETE FROM outbox.delivery d
    WHERE d.id = ANY (%(ids)s::uuid[])
      AND CASE WHEN d.state = 'leased' AND d.started_at IS NOT NULL
          THEN (d.id, d.token) IN (SELECT i.id, i.token FROM input i) END
    RETURNING d.id, d.token, d.event_id, d.subscription_id, d.org_id, d.revision, d.budget, d.attempts
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason, detail)
    SELECT clock.slot, clock.now, 'delivered', e.event_id, e.id, e.subscription_id, e.org_id, e.revision,
           e.budget, e.attempts + 1, true, i.reason, i.detail::jsonb
    FROM clock, ended e JOIN input i ON i.id = e.id AND i.token = e.token
)
SELECT count(*)::int AS settled,
       CASE WHEN count(*) < cardinality(%(ids)s::uuid[]) THEN coalesce(array_agg(e.id), '{}') END AS ours
FROM ended e
