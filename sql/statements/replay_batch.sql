-- Replays the pairs of some events, and moves the replay on, in one transaction. Runs under the
-- lock of replays. Fenced: where the replay does not run or does not stand at `position`, nothing is
-- done. Rows are locked in order of id, deliveries before dead letters; what another session ends
-- while we wait for it is left alone and counted as `busy`.
--
-- now         timestamptz or null
-- replay      text: its id, null in a dry run
-- mode        text: redeliver (same idempotency key), re-emit (a new generation), backfill
-- position, position_now bigint: where the replay stands, and where it will
-- slots       smallint[], events bigint[]: the events, as replay_look.sql found them
-- org_id      text or null: only events of this organization
-- subscription_id, endpoint_id bigint or null: only its pairs; a backfill's own
-- deliveries  uuid[] or null, named bigint[] or null: only these deliveries, and those of these events
-- missed      boolean: only dead ones, others are not counted
-- ignore_expiry boolean: what is past its expiry too, then without one
-- dry_run     boolean: judge alone, change nothing
-- One row: state (of the replay after it; null where the fence held or in a dry run),
-- changed (int), fates (jsonb: how many pairs by fate), pairs (jsonb: in a dry run each of them)
WITH fence AS MATERIALIZED (
    SELECT r.id FROM outbox.replay r
    WHERE r.id = %(replay)s::text AND r.state = 'running' AND r.position = %(position)s::bigint
    FOR UPDATE
),
epoch AS MATERIALIZED (
    SELECT i.first_event_id, i.salt FROM outbox.installation i
),
ev AS MATERIALIZED (
    SELECT e.*, i.salt FROM (
        SELECT u.* FROM unnest(%(slots)s::smallint[], %(events)s::bigint[]) u (slot, id)
        WHERE %(dry_run)s::boolean OR EXISTS (SELECT FROM fence)) u
    CROSS JOIN LATERAL (
        SELECT e.id AS event_id, e.slot, e.type, e.org_id, e.created_at, e.expires_at,
               -- Only a small payload can be the tombstone; a large one is not fetched.
               CASE WHEN pg_column_size(e.payload) < 64 THEN e.payload::text = outbox.tombstone()::text
                    ELSE false END AS redacted
        FROM outbox.event e WHERE e.slot = u.slot AND e.id = u.id
          AND (%(org_id)s::text IS NULL OR e.org_id = %(org_id)s::text)
        OFFSET 0) e
    CROSS JOIN LATERAL (
        SELECT i.salt FROM epoch i WHERE i.first_event_id <= e.event_id
        ORDER BY i.first_event_id DESC LIMIT 1) i
),
-- Retention may clear a slot between the look and now: then the caller looks again.
whole AS MATERIALIZED (
    SELECT f.id FROM fence f WHERE (SELECT count(*) FROM ev) = cardinality(%(events)s::bigint[])
),
facts AS MATERIALIZED (
    SELECT ev.*, j.at, j.fact, j.delivery_id, j.subscription_id, j.budget, j.detail
    FROM ev CROSS JOIN LATERAL (
        SELECT j.at, j.fact, j.delivery_id, j.subscription_id, j.budget,
               CASE WHEN j.fact IN ('routed', 'replayed', 'redriven', 'carried') THEN j.detail END AS detail
        FROM outbox.journal j WHERE j.event_id = ev.event_id AND j.fact <> 'redacted'
        OFFSET 0) j
    WHERE %(dry_run)s::boolean OR EXISTS (SELECT FROM whole)
),
-- Every delivery that the journal knows of these events, with what was last said of it.
known AS MATERIALIZED (
    SELECT t.id, t.event_id, t.slot, t.type, t.org_id, t.created_at, t.expires_at, t.redacted, t.salt,
           min(t.subscription_id) AS subscription_id, coalesce(max(t.generation), 0) AS generation,
           max(t.budget) AS budget, (array_agg(t.fact ORDER BY t.at DESC))[1] AS last_fact
    FROM (
        SELECT f.delivery_id AS id, f.event_id, f.slot, f.type, f.org_id, f.created_at, f.expires_at, f.redacted,
               f.salt, f.subscription_id, f.at, f.fact, f.budget, (f.detail ->> 'generation')::int AS generation
        FROM facts f WHERE f.delivery_id IS NOT NULL
        UNION ALL
        SELECT (i.value ->> 'delivery')::uuid, f.event_id, f.slot, f.type, f.org_id, f.created_at, f.expires_at,
               f.redacted, f.salt, (i.value ->> 'subscription')::bigint, f.at, f.fact, 1, 0
        FROM facts f CROSS JOIN LATERAL jsonb_array_elements(
            CASE WHEN f.fact = 'routed' THEN f.detail END) i (value)) t
    GROUP BY t.id, t.event_id, t.slot, t.type, t.org_id, t.created_at, t.expires_at, t.redacted, t.salt
),
scope AS MATERIALIZED (
    SELECT k.* FROM known k CROSS JOIN LATERAL (
        SELECT FROM outbox.subscription s WHERE s.id = k.subscription_id
          AND (s.all_orgs OR s.org_id = k.org_id)
          AND (%(subscription_id)s::bigint IS NULL OR s.id = %(subscription_id)s::bigint)
          AND (%(endpoint_id)s::bigint IS NULL OR s.endpoint_id = %(endpoint_id)s::bigint)
        OFFSET 0) s
    WHERE %(mode)s::text <> 'backfill'
      -- Under its old key a pair is generation 0, unless another was asked for by its id.
      AND (%(mode)s::text = 're-emit' OR k.generation = 0 OR %(missed)s::boolean
           OR coalesce(k.id = ANY (%(deliveries)s::uuid[]), false))
      AND (coalesce(%(deliveries)s::uuid[]::text, %(named)s::bigint[]::text) IS NULL
           OR coalesce(k.event_id = ANY (%(named)s::bigint[]), false)
           OR coalesce((k.event_id, k.subscription_id) IN (
                SELECT x.event_id, x.subscription_id FROM known x
                WHERE x.id = ANY (%(deliveries)s::uuid[])), false)
           AND (%(mode)s::text = 're-emit' OR k.id = ANY (%(deliveries)s::uuid[])))
),
live AS MATERIALIZED (
    SELECT k.*, d.state, d.due_at, d.attempts, d.revision, d.budget AS budget_now
    FROM (SELECT k.* FROM scope k ORDER BY k.id) k LEFT JOIN LATERAL (
        SELECT d.state, d.due_at, d.attempts, d.revision, d.budget FROM outbox.delivery d WHERE d.id = k.id
        OFFSET 0 FOR UPDATE) d ON true
),
found AS MATERIALIZED (
    SELECT l.id, l.event_id, l.slot, l.type, l.org_id, l.created_at, l.redacted, l.salt, l.subscription_id,
           l.generation, l.due_at, l.attempts,
           coalesce(l.state, CASE WHEN d.id IS NOT NULL THEN 'dead'
                                  WHEN l.last_fact IN ('delivered', 'cancelled', 'discarded') THEN l.last_fact
                                  ELSE 'busy' END) AS state,
           coalesce(l.revision, d.revision) AS revision, coalesce(l.budget_now, d.budget, l.budget) AS budget,
           CASE WHEN d.id IS NOT NULL THEN d.expires_at ELSE l.expires_at END AS expires_at,
           d.lane, d.order_key
    -- Asked for first, the count locks every delivery before the first dead letter.
    FROM (SELECT l.* FROM live l WHERE (SELECT count(*) FROM live) >= 0) l LEFT JOIN LATERAL (
        SELECT d.* FROM outbox.dead_letter d WHERE d.id = l.id AND l.state IS NULL
        OFFSET 0 FOR UPDATE) d ON true
),
-- The clock is read when all rows are locked: facts of whoever held one of them come before ours.
clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now,
           (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
    FROM (SELECT count(*) FROM found) locked
),
pairs AS MATERIALIZED (
    SELECT f.* FROM found f
    WHERE %(mode)s::text = 'redeliver' AND (NOT %(missed)s::boolean OR f.state = 'dead')
    UNION ALL
    SELECT outbox.delivery_id(f.event_id, f.created_at, f.subscription_id, max(f.generation) + 1, f.salt),
           f.event_id, f.slot, f.type, f.org_id, f.created_at, f.redacted, f.salt, f.subscription_id,
           max(f.generation) + 1, NULL, 0,
           CASE WHEN bool_or(f.state IN ('scheduled', 'leased', 'held', 'busy')) THEN 'live'
                WHEN bool_or(f.state = 'cancelled') THEN 'cancelled'
                WHEN bool_or(f.state = 'discarded') THEN 'discarded' ELSE 'ended' END,
           NULL, 0, min(f.expires_at), NULL, NULL
    FROM found f WHERE %(mode)s::text = 're-emit'
    GROUP BY f.event_id, f.slot, f.type, f.org_id, f.created_at, f.redacted, f.salt, f.subscription_id
    HAVING NOT %(missed)s::boolean OR bool_or(f.state = 'dead')
    UNION ALL
    SELECT outbox.delivery_id(e.event_id, e.created_at, %(subscription_id)s::bigint, 0, e.salt),
           e.event_id, e.slot, e.type, e.org_id, e.created_at, e.redacted, e.salt, %(subscription_id)s::bigint,
           0, NULL, 0,
           CASE WHEN e.event_id IN (SELECT k.event_id FROM known k
                                    WHERE k.subscription_id = %(subscription_id)s::bigint) THEN 'routed' ELSE 'new' END,
           NULL, 0, e.expires_at, NULL, NULL
    FROM ev e WHERE %(mode)s::text = 'backfill'
),
judged AS MATERIALIZED (
    SELECT p.id, p.event_id, p.slot, p.type, p.org_id, p.subscription_id, p.generation, p.attempts, p.budget,
           coalesce(p.revision, s.revision) AS revision, coalesce(p.lane, s.lane) AS lane, s.order_mode, s.key AS turn, p.order_key,
           CASE WHEN s.expires_at > clock.now THEN s.expires_at END AS expires_at,
           clock.now + s.max_age AS age_limit_at, s.stopped,
           CASE WHEN p.redacted THEN 'redacted'
                WHEN s.removed THEN 'removed'
                WHEN p.state = 'scheduled' THEN CASE WHEN p.due_at > clock.now THEN 'due_now' ELSE 'already_due' END
                WHEN p.state NOT IN ('dead', 'delivered', 'ended', 'new') THEN p.state
                WHEN s.expires_at <= clock.now AND NOT %(ignore_expiry)s::boolean THEN 'expired'
                ELSE CASE p.state WHEN 'dead' THEN 'redriven' WHEN 'delivered' THEN 'redelivered'
                                  WHEN 'ended' THEN 're-emitted' ELSE 'backfilled' END END AS fate
    FROM clock, pairs p CROSS JOIN LATERAL (
        SELECT s.revision, s.lane, s.max_age, s.order_mode, s.key,
               -- A dead letter has its own expiry, or none any more.
               CASE WHEN s.ttl IS NULL OR p.lane IS NOT NULL THEN p.expires_at ELSE (
                   SELECT outbox.expiry(p.expires_at, e.deliver_at, p.created_at, s.delay, s.ttl)
                   FROM outbox.event e WHERE e.slot = p.slot AND e.id = p.event_id) END AS expires_at,
               s.state = 'removed' OR coalesce(n.state = 'removed', false) AS removed,
               CASE WHEN s.state <> 'active' THEN s.state WHEN n.state <> 'active' THEN n.state END AS stopped
        FROM outbox.subscription s LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
        WHERE s.id = p.subscription_id AND (s.all_orgs OR s.org_id = p.org_id)
        OFFSET 0) s
),
fresh AS MATERIALIZED (
    SELECT x.*, CASE WHEN x.key IS NOT NULL THEN 'order' ELSE x.stopped END AS held_reason FROM (
        SELECT j.*, CASE WHEN j.order_mode IS NOT NULL THEN coalesce(j.order_key, (
                   SELECT outbox.turn_key(j.turn, e.type, e.org_id, e.subject, e.ordering_key, e.payload)
                   FROM outbox.event e WHERE e.slot = j.slot AND e.id = j.event_id)) END AS key
        FROM judged j
        WHERE j.fate IN ('redriven', 'redelivered', 're-emitted', 'backfilled') AND NOT %(dry_run)s::boolean
        OFFSET 0) x
),
urged AS (
    UPDATE outbox.delivery d SET due_at = (SELECT now FROM clock)
    WHERE d.id = ANY (ARRAY(SELECT j.id FROM judged j WHERE j.fate = 'due_now' AND NOT %(dry_run)s::boolean))
),
gone AS (
    DELETE FROM outbox.dead_letter d
    WHERE d.id = ANY (ARRAY(SELECT f.id FROM fresh f WHERE f.fate = 'redriven'))
),
born AS (
    INSERT INTO outbox.delivery (id, event_id, event_slot, subscription_id, revision, generation, lane, org_id,
        order_key, again, state, due_at, expires_at, age_limit_at, attempts, budget, expiries, held_at, held_reason)
    SELECT f.id, f.event_id, f.slot, f.subscription_id, f.revision, f.generation, f.lane, f.org_id,
           f.key, true, CASE WHEN f.held_reason IS NULL THEN 'scheduled' ELSE 'held' END, clock.now, f.expires_at,
           f.age_limit_at, 0, f.budget + 1, 0, CASE WHEN f.held_reason IS NOT NULL THEN clock.now END, f.held_reason
    FROM clock, fresh f
),
signalled AS (
    INSERT INTO outbox.order_signal (subscription_id, order_key)
    SELECT DISTINCT f.subscription_id, f.key FROM fresh f WHERE f.key IS NOT NULL
),
told AS (
    INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision,
        budget, attempt, charged, reason, due_at, detail)
    SELECT clock.slot, clock.now, CASE j.fate WHEN 'redriven' THEN 'redriven' ELSE 'replayed' END, j.event_id, j.id,
           j.subscription_id, j.org_id, j.revision, CASE j.fate WHEN 'due_now' THEN j.budget ELSE j.budget + 1 END,
           CASE j.fate WHEN 'due_now' THEN j.attempts ELSE 0 END, false, %(replay)s::text, clock.now,
           jsonb_build_object('replay', %(replay)s::text, 'generation', j.generation)
               || CASE j.fate WHEN 'backfilled' THEN '{"backfill": true}'::jsonb ELSE '{}' END
    FROM clock, judged j
    WHERE j.fate IN ('due_now', 'redriven', 'redelivered', 're-emitted', 'backfilled') AND NOT %(dry_run)s::boolean
    UNION ALL
    SELECT clock.slot, clock.now + interval '1 microsecond', 'held', f.event_id, f.id, f.subscription_id, f.org_id,
           f.revision, f.budget + 1, 0, false, f.held_reason, NULL, NULL
    FROM clock, fresh f WHERE f.held_reason IS NOT NULL
),
tally AS MATERIALIZED (
    SELECT j.fate, count(*) AS n FROM judged j GROUP BY j.fate
),
moved AS (
    UPDATE outbox.replay r
    SET position = %(position_now)s::bigint, moved_at = clock_timestamp(),
        counts = (SELECT jsonb_object_agg(x.name, x.n) FROM (
            SELECT c.name, sum(c.n) AS n FROM (
                SELECT o.key AS name, o.value::bigint AS n FROM jsonb_each_text(r.counts) o
                UNION ALL SELECT t.fate, t.n FROM tally t
                UNION ALL SELECT 'events', cardinality(%(events)s::bigint[])) c
            GROUP BY c.name) x),
        state = CASE WHEN %(position_now)s::bigint >= r.ceiling THEN 'done' ELSE r.state END,
        ended_at = CASE WHEN %(position_now)s::bigint >= r.ceiling THEN clock_timestamp() END
    WHERE r.id = (SELECT w.id FROM whole w)
    RETURNING r.state
)
SELECT (SELECT m.state FROM moved m) AS state,
       (SELECT coalesce(sum(t.n), 0) FROM tally t
        WHERE t.fate IN ('due_now', 'redriven', 'redelivered', 're-emitted', 'backfilled'))::int AS changed,
       (SELECT coalesce(jsonb_object_agg(t.fate, t.n), '{}') FROM tally t) AS fates,
       (SELECT jsonb_agg(jsonb_build_object('event', j.event_id, 'type', j.type, 'subscription', j.subscription_id,
                   'delivery', j.id, 'fate', j.fate) ORDER BY j.event_id, j.subscription_id)
        FROM judged j WHERE %(dry_run)s::boolean) AS pairs
