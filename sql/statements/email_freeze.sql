-- Freezes messages before anything is sent. A delivery that has one keeps it and is not among the rows;
-- nor is one that is no delivery any more. Deliveries are locked in order of id, so that nobody carries,
-- cancels or redacts one meanwhile.
--
-- now         timestamptz or null
-- ids         uuid[]
-- message_ids text[]
-- senders     text[]: of the envelope
-- smtputf8    boolean[]: does the envelope or the header need it?
-- mimes       bytea[]
-- recipients  text[]: JSON arrays of [address, state, reply]
-- A row each: id, slot, recipients (json: as email_open.sql has it)
WITH clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
),
given AS MATERIALIZED (
    SELECT i.*, d.event_slot, d.event_id, d.subscription_id, d.org_id, d.budget
    FROM (
        SELECT u.* FROM unnest(%(ids)s::uuid[], %(message_ids)s::text[], %(senders)s::text[], %(smtputf8)s::boolean[],
                               %(mimes)s::bytea[], %(recipients)s::text[])
            AS u (id, message_id, sender, smtputf8, mime, recipients) ORDER BY u.id) i
    CROSS JOIN LATERAL (
        SELECT * FROM outbox.delivery d WHERE d.id = i.id
        OFFSET 0 FOR SHARE) d
),
frozen AS (
    INSERT INTO outbox.email (slot, delivery_id, event_id, subscription_id, org_id, message_id, sender, smtputf8,
        mime, budget, frozen_at)
    SELECT g.event_slot, g.id, g.event_id, g.subscription_id, g.org_id, g.message_id, g.sender, g.smtputf8,
           g.mime, g.budget, clock.now
    FROM clock, given g
    ON CONFLICT (slot, delivery_id) DO NOTHING
    RETURNING delivery_id
),
people AS (
    INSERT INTO outbox.email_recipient (slot, delivery_id, n, address, state, reply, changed_at)
    SELECT g.event_slot, g.id, x.n - 1, x.value ->> 0,
           CASE WHEN x.value ->> 1 = 'queued' AND (
                    SELECT true FROM outbox.suppression s
                    WHERE s.org_id = coalesce(g.org_id, '') AND s.address = lower(x.value ->> 0) LIMIT 1)
                THEN 'suppressed' ELSE x.value ->> 1 END,
           x.value ->> 2, clock.now
    FROM clock, frozen f JOIN given g ON g.id = f.delivery_id
    CROSS JOIN LATERAL json_array_elements(g.recipients::json) WITH ORDINALITY x (value, n)
    RETURNING slot, delivery_id, n, address, state
)
SELECT p.delivery_id AS id, p.slot,
       json_agg(json_build_array(p.n, p.address, p.state, p.state = 'suppressed') ORDER BY p.n) AS recipients
FROM people p GROUP BY p.delivery_id, p.slot
