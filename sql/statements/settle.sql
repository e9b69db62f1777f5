-- Ends attempts, in one transaction with their facts. Fenced: only rows whose token still holds
-- change; the caller discards the rest. Rows are locked in order of id, as everywhere.
--
-- now      timestamptz or null
-- ids      uuid[]
-- tokens   bigint[]
-- verdicts text[]: delivered, retry, dead, release (given back unstarted in effect, uncharged)
-- charged  boolean[]
-- reasons  text[]
-- delays_s float8[]: for retry, seconds from now
-- details  text[]: JSON or null
-- A row each for what was settled: id
--
-- Rows are reached by id alone, whatever the statistics say: every change is `id = ANY (...)`.
-- OFFSET 0 keeps the conditions on the state out of the scan that locks: on an empty database's
-- statistics the plan would walk all leases for each id.
WITH clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now,
           (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
own AS MATERIALIZED (
    SELECT d.*, i.verdict, i.charged, i.reason, i.delay_s, i.detail, d.attempts + i.charged::int AS attempts_now
    FROM (
        SELECT u.* FROM unnest(%(ids)s::uuid[], %(tokens)s::bigint[], %(verdicts)s::text[], %(charged)s::boolean[],
                               %(reasons)s::text[], %(delays_s)s::float8[], %(details)s::text[])
            AS u (id, token, verdict, charged, reason, delay_s, detail) ORDER BY u.id) i
    CROSS JOIN LATERAL (
        SELECT * FROM outbox.delivery d WHERE d.id = i.id
        OFFSET 0 FOR UPDATE) d
    WHERE d.state = 'leased' AND d.token = i.token AND d.started_at IS NOT NULL
),
ended AS (
    DELETE FROM outbox.delivery d
    WHERE d.id = ANY (ARRAY(SELECT o.id FROM own o WHERE o.verdict IN ('delivered', 'dead')))
),
buried AS (
    INSERT INTO outbox.dead_letter (id, event_id, event_slot, subscription_id, revision, generation, lane, org_id,
        attempts, budget, expiries, expires_at, reason, detail, died_at)
    SELECT o.id, o.event_id, o.event_slot, o.subscription_id, o.revision, o.generation, o.lane, o.org_id,
           o.attempts_now, o.budget, o.expiries, o.expires_at, o.reason, o.detail::jsonb, clock.now
    FROM clock, own o WHERE o.verdict = 'dead'
),
again AS MATERIALIZED (
    SELECT jsonb_object_agg(o.id, jsonb_build_object('attempts', o.attempts_now, 'delay_s', o.delay_s)) AS by_id
    FROM own o WHERE o.verdict IN ('retry', 'release')
),
waiting AS (
    UPDATE outbox.delivery d
    SET state = 'scheduled', token = NULL, lease_until = NULL, started_at = NULL,
        attempts = ((SELECT by_id FROM again) -> d.id::text ->> 'attempts')::int,
        due_at = (SELECT now FROM clock) + make_interval(
            secs => coalesce(((SELECT by_id FROM again) -> d.id::text ->> 'delay_s')::float8, 0))
    WHERE d.id = ANY (ARRAY(SELECT o.id FROM own o WHERE o.verdict IN ('retry', 'release')))
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason, due_at, detail)
    SELECT clock.slot, clock.now,
           CASE o.verdict WHEN 'delivered' THEN 'delivered' WHEN 'dead' THEN 'dead'
                          WHEN 'release' THEN 'released' ELSE 'attempt_failed' END,
           o.event_id, o.id, o.subscription_id, o.org_id, o.revision, o.budget, o.attempts_now, o.charged,
           o.reason, CASE WHEN o.verdict IN ('retry', 'release')
                          THEN clock.now + make_interval(secs => coalesce(o.delay_s, 0)) END, o.detail::jsonb
    FROM clock, own o
)
SELECT o.id FROM own o
