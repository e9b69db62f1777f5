-- Notes what became of a message later, as a receiver's server or a provider reports it, and tells it as
-- an event of the organization: outbox.email.delivered, .bounced or .complained. A report changes a
-- recipient that was sent to, never backwards; the same one twice changes nothing.
--
-- now     timestamptz or null
-- id      uuid: the delivery, out of the Message-ID
-- org_id  text or null: only where it is this organization's
-- address text or null: without one, the only recipient
-- state   text: delivered, bounced or complained
-- code    text or null: the enhanced status code
-- reply   text or null
-- reason  text or null: why the address is to be suppressed
-- One row: found, changed (counts)
WITH clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
),
known AS MATERIALIZED (
    SELECT r.slot, r.delivery_id, r.n, r.address, r.state, e.org_id, e.event_id, count(*) OVER () AS people
    FROM (SELECT e.* FROM outbox.email e
          WHERE e.slot = ANY ('{0,1,2,3,4,5,6,7}') AND e.delivery_id = %(id)s::uuid
            AND (%(org_id)s::text IS NULL OR e.org_id = %(org_id)s::text) OFFSET 0) e
    CROSS JOIN LATERAL (
        SELECT r.* FROM outbox.email_recipient r WHERE r.slot = e.slot AND r.delivery_id = e.delivery_id OFFSET 0) r
),
found AS MATERIALIZED (
    SELECT k.* FROM known k
    WHERE lower(k.address) = lower(%(address)s::text) OR %(address)s::text IS NULL AND k.people = 1
),
changed AS (
    UPDATE outbox.email_recipient r
    SET state = %(state)s::text, reply = coalesce(%(reply)s::text, r.reply), changed_at = clock.now
    FROM clock, found f
    WHERE r.slot = f.slot AND r.delivery_id = f.delivery_id AND r.n = f.n
      AND r.state = ANY (CASE %(state)s::text
          WHEN 'delivered' THEN '{sending,sent,unknown}'::text[]
          WHEN 'bounced' THEN '{sending,sent,unknown,delivered}'
          WHEN 'complained' THEN '{sending,sent,unknown,delivered,bounced}' END)
    RETURNING r.delivery_id, r.n, f.org_id, f.event_id
),
-- It names the recipient by number: an address would outlive the erasure of what it was used for.
told AS MATERIALIZED (
    SELECT outbox.announce('outbox.email.' || %(state)s::text, c.org_id, NULL, json_build_object(
               'delivery', c.delivery_id, 'recipient', c.n, 'event', c.event_id, 'code', %(code)s::text)) AS id
    FROM changed c
),
listed AS (
    INSERT INTO outbox.suppression (org_id, address, reason, created_at)
    SELECT coalesce(f.org_id, ''), lower(f.address), %(reason)s::text, clock.now
    FROM clock, found f WHERE %(reason)s::text IS NOT NULL
      AND f.state IN ('sending', 'sent', 'unknown', 'delivered', 'bounced', 'complained')
    ON CONFLICT DO NOTHING
)
SELECT (SELECT count(*) FROM found) AS found, (SELECT count(*) FROM told) AS changed
