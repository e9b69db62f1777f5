-- Calls off live deliveries by id, leased ones too: the token goes with the row, so that a late
-- settle changes nothing. Rows are locked in order of id.
--
-- ids uuid[], org_id text or null: only deliveries of this organization
-- reason text
-- A row each for what was cancelled: id
WITH own AS MATERIALIZED (
    SELECT d.* FROM outbox.delivery d
    WHERE d.id = ANY (%(ids)s::uuid[]) AND (%(org_id)s::text IS NULL OR d.org_id = %(org_id)s::text)
    ORDER BY d.id FOR UPDATE
),
-- The clock is read when all rows are locked: facts of whoever held one of them come before ours.
clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
    FROM (SELECT count(*) FROM own) locked
),
gone AS (
    DELETE FROM outbox.delivery d USING own o WHERE d.id = o.id
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason)
    SELECT clock.slot, clock.now, 'cancelled', o.event_id, o.id, o.subscription_id, o.org_id, o.revision,
           o.budget, o.attempts, false, %(reason)s::text
    FROM clock, own o
)
SELECT o.id FROM own o
