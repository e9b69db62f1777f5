-- Brings the held deliveries of a lane into line with the state of their destinations, batch by
-- batch in order of id: those of active ones that were paused or disabled are scheduled again,
-- those of removed ones cancelled. What is held for another reason stays. The maximum age stood
-- still meanwhile: it moves by the time held. Runs under the lock of configuration.
--
-- lane      bigint
-- after_at  timestamptz: not used, every sweep has it
-- after_id  uuid: where the batch before ended
-- rows_max  int
-- One row: looked (int), held, released, cancelled (counts), last_at (text), last_id
WITH clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
looked AS MATERIALIZED (
    SELECT d.id FROM outbox.delivery d
    WHERE d.lane = %(lane)s::bigint AND d.state = 'held' AND d.id > %(after_id)s::uuid
    ORDER BY d.id LIMIT %(rows_max)s::int
),
own AS MATERIALIZED (
    SELECT d.*, s.state = 'removed' OR coalesce(n.state, 'active') = 'removed' AS removed
    FROM outbox.delivery d JOIN looked k ON k.id = d.id
    JOIN outbox.subscription s ON s.id = d.subscription_id
    LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
    WHERE d.state = 'held'
      AND (s.state = 'removed' OR n.state = 'removed'
           OR (d.held_reason IN ('paused', 'disabled') AND s.state = 'active' AND coalesce(n.state, 'active') = 'active'))
    ORDER BY d.id FOR UPDATE OF d
),
freed AS (
    UPDATE outbox.delivery d
    SET state = 'scheduled', held_at = NULL, held_reason = NULL,
        age_limit_at = o.age_limit_at + greatest(interval '0', clock.now - o.held_at)
    FROM clock, own o WHERE d.id = o.id AND NOT o.removed
),
gone AS (
    DELETE FROM outbox.delivery d USING own o WHERE d.id = o.id AND o.removed
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason, due_at)
    SELECT clock.slot, clock.now, CASE WHEN o.removed THEN 'cancelled' ELSE 'released' END,
           o.event_id, o.id, o.subscription_id, o.org_id, o.revision, o.budget, o.attempts, false,
           CASE WHEN o.removed THEN 'removed' ELSE 'resumed' END, CASE WHEN NOT o.removed THEN o.due_at END
    FROM clock, own o
)
SELECT (SELECT count(*) FROM looked)::int AS looked, 0::bigint AS held,
       (SELECT count(*) FROM own WHERE NOT removed) AS released,
       (SELECT count(*) FROM own WHERE removed) AS cancelled,
       NULL::text AS last_at, (SELECT k.id FROM looked k ORDER BY k.id DESC LIMIT 1) AS last_id
