-- Puts events where they belong: pending under their slot and organization while nothing says that
-- they were routed, and not pending otherwise. Runs under the lock of configuration: nobody routes meanwhile.
--
-- ids bigint[]
-- One row: put, dropped (counts)
WITH wanted AS MATERIALIZED (
    SELECT u.id, e.slot, e.org, coalesce((
               SELECT true FROM outbox.journal j WHERE j.event_id = u.id
               AND (j.fact = 'routed' OR j.delivery_id IS NOT NULL) LIMIT 1), false) AS routed
    FROM (SELECT u.id FROM unnest(%(ids)s::bigint[]) u (id) ORDER BY u.id) u
    LEFT JOIN LATERAL (
        SELECT e.slot, coalesce(e.org_id, '') AS org
        FROM (SELECT last_value::int AS current FROM outbox.ring_slot) ring, generate_series(0, 7) AS n (slot)
        CROSS JOIN LATERAL (
            SELECT e.slot, e.org_id FROM outbox.event e WHERE e.slot = n.slot::smallint AND e.id = u.id
            OFFSET 0) e
        ORDER BY (e.slot - ring.current + 15) %% 8 DESC LIMIT 1) e ON true
),
put AS (
    INSERT INTO outbox.pending AS p (id, slot, org)
    SELECT w.id, w.slot, w.org FROM wanted w WHERE w.slot IS NOT NULL AND NOT w.routed ORDER BY w.id
    ON CONFLICT (id) DO UPDATE SET slot = excluded.slot, org = excluded.org
    WHERE (p.slot, p.org) <> (excluded.slot, excluded.org)
    RETURNING p.id
),
dropped AS (
    DELETE FROM outbox.pending p USING wanted w
    WHERE p.id = w.id AND (w.slot IS NULL OR w.routed)
    RETURNING p.id
)
SELECT (SELECT count(*) FROM put) AS put, (SELECT count(*) FROM dropped) AS dropped
