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
-- effects  text[]: JSON or null: what an attempt brings about, in this transaction. `emit`, of a delivered
--          one alone, is an array of events: type, subject, payload, headers, and the options of outbox.emit;
--          `email` says what became of recipients (outbox.note_emails); `artifact`, of a delivered one alone,
--          is a document that was stored
-- A row each for what was settled: id, emitted (events, of the whole batch), mailed (of no interest)
--
-- Rows are reached by id alone, whatever the statistics say: every change is `id = ANY (...)`.
-- OFFSET 0 keeps the conditions on the state out of the scan that locks: on an empty database's
-- statistics the plan would walk all leases for each id.
WITH clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now,
           (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
),
own AS MATERIALIZED (
    SELECT d.*, i.verdict, i.charged, i.reason, i.delay_s, i.detail, i.effects, d.attempts + i.charged::int AS attempts_now
    FROM (
        SELECT u.* FROM unnest(%(ids)s::uuid[], %(tokens)s::bigint[], %(verdicts)s::text[], %(charged)s::boolean[],
                               %(reasons)s::text[], %(delays_s)s::float8[], %(details)s::text[], %(effects)s::text[])
            AS u (id, token, verdict, charged, reason, delay_s, detail, effects) ORDER BY u.id) i
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
        order_key, attempts, budget, expiries, expires_at, reason, detail, died_at)
    SELECT o.id, o.event_id, o.event_slot, o.subscription_id, o.revision, o.generation, o.lane, o.org_id,
           o.order_key, o.attempts_now, o.budget, o.expiries, o.expires_at, o.reason, o.detail::jsonb, clock.now
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
),
-- An event with both keys is written in the order of its ordering key: two settles that use the same
-- deduplication keys in another order would wait for each other. So these are locked first, in one order.
once AS MATERIALIZED (
    SELECT count(pg_catalog.pg_advisory_xact_lock(k.hash)) AS n FROM (
        SELECT DISTINCT pg_catalog.hashtextextended(
            coalesce(o.org_id, '') || E'\x01' || (e.value ->> 'dedupe_key'), 7862) AS hash
        FROM own o CROSS JOIN LATERAL json_array_elements(o.effects::json -> 'emit') e (value)
        WHERE o.verdict = 'delivered' AND o.effects IS NOT NULL AND e.value ->> 'dedupe_key' IS NOT NULL
        ORDER BY 1) k
),
-- In one order everywhere, since emit locks an ordering key or a deduplication key; but events of one
-- ordering key in the order in which they were emitted, for that is what the key promises.
emitted AS MATERIALIZED (
    SELECT o.id, outbox.emit_effect(o.org_id, e.value) AS event_id
    FROM once CROSS JOIN own o CROSS JOIN LATERAL json_array_elements(o.effects::json -> 'emit') WITH ORDINALITY e (value, n)
    WHERE o.verdict = 'delivered' AND o.effects IS NOT NULL
    ORDER BY o.org_id, e.value ->> 'ordering_key',
             CASE WHEN e.value ->> 'ordering_key' IS NULL THEN e.value ->> 'dedupe_key' END, o.id, e.n
),
artifacts AS MATERIALIZED (
    SELECT o.id AS delivery_id, o.event_id, o.subscription_id, o.org_id, a.*
    FROM own o CROSS JOIN LATERAL json_to_record(o.effects::json -> 'artifact') AS a (
        id uuid, sha256 text, size bigint, pages int, filename text, content_type text, subject text, engine text,
        engine_version text, template text, template_version text)
    WHERE o.verdict = 'delivered' AND o.effects IS NOT NULL AND a.sha256 IS NOT NULL
),
kept AS (
    INSERT INTO outbox.artifact AS had (id, delivery_id, event_id, subscription_id, org_id, subject, sha256, size, pages,
        filename, content_type, engine, engine_version, template, template_version, announced, created_at)
    SELECT a.id, a.delivery_id, a.event_id, a.subscription_id, a.org_id, a.subject, a.sha256, a.size, a.pages,
           a.filename, a.content_type, a.engine, a.engine_version, a.template, a.template_version,
           ARRAY(SELECT e.event_id FROM emitted e WHERE e.id = a.delivery_id), clock.now
    FROM clock, artifacts a ORDER BY a.id
    ON CONFLICT (id) DO UPDATE SET announced = had.announced || EXCLUDED.announced
),
-- What an artifact names is no stray.
named AS (
    DELETE FROM outbox.artifact_stray s WHERE s.ctid = ANY (ARRAY(
        SELECT s.ctid FROM outbox.artifact_stray s
        JOIN artifacts a ON s.org = coalesce(a.org_id, '') AND s.sha256 = a.sha256
        ORDER BY s.org, s.sha256 FOR UPDATE OF s))
),
mailed AS MATERIALIZED (
    SELECT outbox.note_emails(x.now, x.told)::text AS done
    FROM (
        SELECT (SELECT now FROM clock) AS now, jsonb_object_agg(o.id, jsonb_build_object(
                   'org', o.org_id, 'slot', o.event_slot, 'n', o.effects::jsonb -> 'email')) AS told
        FROM own o WHERE o.effects IS NOT NULL AND o.effects::json -> 'email' IS NOT NULL) x
    WHERE x.told IS NOT NULL
)
SELECT o.id, (SELECT count(*) FROM emitted) AS emitted, (SELECT count(*) FROM mailed) AS mailed FROM own o
