-- Subscriptions of every kind: what they are configured with, limits of their own, and events that an
-- attempt brings about.
-- compatible-from: 10
--
-- Programs of level 10 run on this schema. The first subscription of another kind than webhook ends
-- that: they could not perform it (subscription_admit.sql).

-- A webhook's limits are its endpoint's; where there is no endpoint, the subscription has its own.
-- `processor` names the user's code that performs it; `config` is what its kind asks for. The names are
-- none of the endpoint's columns: programs of level 10 join the two by `*`.
ALTER TABLE outbox.subscription
    ADD COLUMN processor       text,
    ADD COLUMN config          jsonb,
    ADD COLUMN concurrency_max integer CHECK (concurrency_max BETWEEN 1 AND 100000),
    ADD COLUMN rate_per_s_max  double precision CHECK (rate_per_s_max > 0),
    ADD COLUMN timeout         interval CHECK (timeout > interval '0');
ALTER TABLE outbox.subscription
    ADD CONSTRAINT subscription_processor_check CHECK ((kind = 'processor') = (processor IS NOT NULL));

-- Only programs of level 9 looked for due work by these.
DROP INDEX outbox.delivery_fresh;
DROP INDEX outbox.delivery_retry;

-- As before, with headers: what follows from an event says how many hops it is away.
DROP FUNCTION outbox.announce(text, text, text, json);
CREATE FUNCTION outbox.announce(type text, org_id text, subject text, payload json, headers json DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SET search_path = '' AS $$
#variable_conflict use_variable
DECLARE
    v_id bigint;
    v_slot smallint;
BEGIN
    -- The transaction id comes before the event id, as in emit.
    PERFORM pg_catalog.pg_current_xact_id();
    v_id := pg_catalog.nextval('outbox.event_id');
    v_slot := (SELECT last_value FROM outbox.ring_slot);
    INSERT INTO outbox.event (id, slot, type, org_id, subject, payload, headers, created_at)
    VALUES (v_id, v_slot, type, org_id, subject, payload, headers, pg_catalog.clock_timestamp());
    INSERT INTO outbox.pending (id, slot, org) VALUES (v_id, v_slot, coalesce(org_id, ''));
    PERFORM outbox.ring_bell();
    RETURN v_id;
END
$$;

-- Emit one event that an attempt brought about, of ours or of the user's; returns its id. It belongs
-- to the organization of the delivery, whatever the processor is.
CREATE FUNCTION outbox.emit_effect(org_id text, effect json) RETURNS bigint
LANGUAGE sql SET search_path = '' AS $$
    SELECT CASE WHEN pg_catalog.starts_with(effect ->> 'type', 'outbox.')
        THEN outbox.announce(effect ->> 'type', org_id, effect ->> 'subject', effect -> 'payload', effect -> 'headers')
        ELSE outbox.emit(effect ->> 'type', effect -> 'payload', org_id, effect ->> 'subject',
                         effect ->> 'ordering_key', effect -> 'headers', (effect ->> 'deliver_at')::timestamptz,
                         (effect ->> 'expires_at')::timestamptz, effect ->> 'dedupe_key',
                         pg_catalog.make_interval(secs => (effect ->> 'dedupe_for_s')::float8)) END
$$;

REVOKE ALL ON FUNCTION outbox.announce(text, text, text, json, json), outbox.emit_effect(text, json) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.announce(text, text, text, json, json), outbox.emit_effect(text, json) TO outbox_daemon;

-- -- e-mail ---------------------------------------------------------------------------------------

-- A message as it was frozen before the first connection; every attempt sends these bytes. It lives in
-- the slot of its event and goes with it. `budget` is the delivery's when it was last begun: a new one
-- offers those who were rejected once more.
CREATE TABLE outbox.email (
    slot            smallint NOT NULL,
    delivery_id     uuid NOT NULL,
    event_id        bigint NOT NULL,
    subscription_id bigint NOT NULL,
    org_id          text,
    message_id      text NOT NULL,
    sender          text NOT NULL,
    smtputf8        boolean NOT NULL,
    mime            bytea NOT NULL,
    budget          integer NOT NULL,
    frozen_at       timestamptz NOT NULL,
    PRIMARY KEY (slot, delivery_id)
) PARTITION BY LIST (slot);
CREATE INDEX email_frozen ON outbox.email (frozen_at);

-- Each recipient of a message, by its number in it; the states are those of outbox/recipients.py. What
-- an attempt made of them stands in its fact, what was reported later in events of type outbox.email.*.
CREATE TABLE outbox.email_recipient (
    slot        smallint NOT NULL,
    delivery_id uuid NOT NULL,
    n           smallint NOT NULL,
    address     text NOT NULL,
    state       text NOT NULL CHECK (state IN ('queued', 'suppressed', 'sending', 'sent', 'deferred', 'rejected',
                                               'unknown', 'delivered', 'bounced', 'complained')),
    reply       text,
    attempts    integer NOT NULL DEFAULT 0,
    changed_at  timestamptz NOT NULL,
    PRIMARY KEY (slot, delivery_id, n)
) PARTITION BY LIST (slot);
-- Nobody searches by these, and samples of them would outlive an erasure.
ALTER TABLE outbox.email ALTER message_id SET STATISTICS 0, ALTER sender SET STATISTICS 0, ALTER mime SET STATISTICS 0;
ALTER TABLE outbox.email_recipient ALTER address SET STATISTICS 0, ALTER reply SET STATISTICS 0;

DO $$
BEGIN
    FOR s IN 0..7 LOOP
        EXECUTE format('CREATE TABLE outbox.email_%s PARTITION OF outbox.email FOR VALUES IN (%s)', s, s);
        EXECUTE format('CREATE TABLE outbox.email_recipient_%s PARTITION OF outbox.email_recipient FOR VALUES IN (%s)'
                       ' WITH (fillfactor = 50)', s, s);
        EXECUTE format('ALTER TABLE outbox.email_%s ALTER message_id SET STATISTICS 0, ALTER sender SET STATISTICS 0,'
                       ' ALTER mime SET STATISTICS 0', s);
        EXECUTE format('ALTER TABLE outbox.email_recipient_%s ALTER address SET STATISTICS 0, ALTER reply SET STATISTICS 0', s);
        EXECUTE format('GRANT TRUNCATE ON outbox.email_%s, outbox.email_recipient_%s TO outbox_daemon', s, s);
    END LOOP;
END
$$;

-- Addresses (in lower case) that an organization sends nothing to, '' for system-wide events. It stays
-- until somebody removes it: whom not to write to must be remembered.
CREATE TABLE outbox.suppression (
    org_id     text NOT NULL,
    address    text NOT NULL CHECK (address = lower(address)),
    reason     text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (org_id, address)
);
ALTER TABLE outbox.suppression ALTER address SET STATISTICS 0;

-- Write what attempts made of recipients. `told` holds, by delivery, `org`, `slot` and `n`: by number of
-- recipient [state, reply, was it offered, reason to suppress or null]. What was reported stays.
CREATE FUNCTION outbox.note_emails(at timestamptz, told jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
#variable_conflict use_variable
DECLARE
    v_ids uuid[] := ARRAY(SELECT k::uuid FROM pg_catalog.jsonb_object_keys(told) k);
    v_slots smallint[] := ARRAY(SELECT DISTINCT (v.value ->> 'slot')::smallint FROM pg_catalog.jsonb_each(told) v);
BEGIN
    WITH changed AS (
        UPDATE outbox.email_recipient r
        SET state = told -> r.delivery_id::text -> 'n' -> r.n::text ->> 0,
            reply = told -> r.delivery_id::text -> 'n' -> r.n::text ->> 1,
            attempts = r.attempts + (told -> r.delivery_id::text -> 'n' -> r.n::text ->> 2)::boolean::int,
            changed_at = at
        WHERE r.slot = ANY (v_slots) AND r.delivery_id = ANY (v_ids)
          AND told -> r.delivery_id::text -> 'n' ? r.n::text
          AND r.state NOT IN ('delivered', 'bounced', 'complained')
        RETURNING r.delivery_id, r.n, r.address
    )
    INSERT INTO outbox.suppression AS s (org_id, address, reason, created_at)
    SELECT DISTINCT ON (1, 2) coalesce(told -> c.delivery_id::text ->> 'org', ''), pg_catalog.lower(c.address),
           told -> c.delivery_id::text -> 'n' -> c.n::text ->> 3, at
    FROM changed c WHERE told -> c.delivery_id::text -> 'n' -> c.n::text ->> 3 IS NOT NULL
    ORDER BY 1, 2
    ON CONFLICT DO NOTHING;
END
$$;

GRANT SELECT ON outbox.email, outbox.email_recipient, outbox.suppression TO outbox_daemon, outbox_reader;
GRANT INSERT, UPDATE, DELETE ON outbox.email, outbox.email_recipient, outbox.suppression TO outbox_daemon;
REVOKE ALL ON FUNCTION outbox.note_emails(timestamptz, jsonb) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.note_emails(timestamptz, jsonb) TO outbox_daemon;

-- -- documents ---------------------------------------------------------------------------------

-- A document that a delivery rendered, written by the statement that settles it. It outlives its event.
-- The id is made of the delivery's and the content: a delivery that is replayed has the same one, unless
-- its template changed meanwhile.
CREATE TABLE outbox.artifact (
    id               uuid PRIMARY KEY,
    delivery_id      uuid NOT NULL,
    event_id         bigint NOT NULL,
    subscription_id  bigint NOT NULL,
    org_id           text,
    subject          text,
    sha256           text NOT NULL CHECK (sha256 ~ '^[0-9a-f]{64}$'),
    size             bigint NOT NULL,
    pages            integer NOT NULL,
    filename         text NOT NULL,
    content_type     text NOT NULL,
    engine           text NOT NULL,
    engine_version   text NOT NULL,
    template         text NOT NULL,
    template_version text NOT NULL,
    announced        bigint[] NOT NULL,
    created_at       timestamptz NOT NULL
);
CREATE INDEX artifact_content ON outbox.artifact (org_id, sha256);
CREATE INDEX artifact_event ON outbox.artifact (event_id);
CREATE INDEX artifact_subject ON outbox.artifact (subject) WHERE subject IS NOT NULL;
CREATE INDEX artifact_age ON outbox.artifact (created_at);
-- The events that told of it hold the same data: a redaction finds them, and it, from either.
CREATE INDEX artifact_announced ON outbox.artifact USING gin (announced);

-- Stored content that no artifact names: about to be stored, or to be removed (since is then null). Until
-- `removing_until` somebody removes it, and it is not to be stored.
CREATE TABLE outbox.artifact_stray (
    org            text NOT NULL,
    sha256         text NOT NULL,
    since          timestamptz,
    removing_until timestamptz,
    PRIMARY KEY (org, sha256)
);

GRANT SELECT ON outbox.artifact, outbox.artifact_stray TO outbox_daemon, outbox_reader;
GRANT INSERT, UPDATE, DELETE ON outbox.artifact, outbox.artifact_stray TO outbox_daemon;

-- -- options of a subscription -------------------------------------------------------------------

-- `delay`: due that much later. `ttl`: expires that long after it is due. `priority`: so many seconds
-- ahead in its lane's queue. `tags`: for lists.
ALTER TABLE outbox.subscription
    ADD COLUMN delay    interval CHECK (delay > interval '0'),
    ADD COLUMN ttl      interval CHECK (ttl > interval '0'),
    ADD COLUMN priority text,
    ADD COLUMN tags     text[] NOT NULL DEFAULT '{}';
CREATE INDEX subscription_tags ON outbox.subscription USING gin (tags) WHERE tags <> '{}';

-- Order by key also bounds how many of a key are under way: with `share` `key_concurrency` of them
-- have their turn at once, and a dead one bars nobody. `key` says what the key is, as in key_text;
-- null: that of outbox.order_key.
ALTER TABLE outbox.subscription
    ADD COLUMN key             text,
    ADD COLUMN key_concurrency integer CHECK (key_concurrency BETWEEN 1 AND 10000);
ALTER TABLE outbox.subscription DROP CONSTRAINT subscription_order_mode_check;
ALTER TABLE outbox.subscription
    ADD CONSTRAINT subscription_order_mode_check CHECK (order_mode IN ('block', 'park', 'skip', 'share')),
    ADD CONSTRAINT subscription_share_check CHECK (
        (order_mode IS NOT DISTINCT FROM 'share') = (key IS NOT NULL AND key_concurrency IS NOT NULL));
CREATE INDEX delivery_turn ON outbox.delivery (subscription_id, order_key)
    WHERE order_key IS NOT NULL AND held_reason IS DISTINCT FROM 'order';

-- `use_key`: of the events that have the same key, only some become deliveries. With `once_for` the
-- first in that time; with `debounce` the latest, when nothing came for that long, or when
-- `debounce_max` is over since the first.
ALTER TABLE outbox.subscription
    ADD COLUMN use_key      text,
    ADD COLUMN once_for     interval CHECK (once_for > interval '0'),
    ADD COLUMN debounce     interval CHECK (debounce > interval '0'),
    ADD COLUMN debounce_max interval CHECK (debounce_max >= debounce),
    ADD CONSTRAINT subscription_use_check CHECK (
        (use_key IS NOT NULL)::int = (once_for IS NOT NULL)::int + (debounce IS NOT NULL)::int
        AND (debounce IS NULL) = (debounce_max IS NULL)
        AND (debounce IS NULL OR order_mode IS NULL));

-- Keys in use, as a hash that tells nothing of them. Like `dedupe` a memory with a life of its own:
-- what came of it stands in the journal.
CREATE TABLE outbox.key_use (
    subscription_id bigint NOT NULL,
    key             bytea NOT NULL,
    event_id        bigint NOT NULL,
    delivery_id     uuid NOT NULL,
    since           timestamptz NOT NULL,
    until           timestamptz NOT NULL,
    PRIMARY KEY (subscription_id, key)
);
CREATE INDEX key_use_until ON outbox.key_use (until);

-- A key of an event: one of its columns (org, type, subject, ordering_key), or the first value that an
-- SQL/JSON path finds in its payload. Null where there is none.
CREATE FUNCTION outbox.key_text(
    key text, type text, org_id text, subject text, ordering_key text, payload json
) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
BEGIN
    RETURN CASE key WHEN 'org' THEN org_id WHEN 'type' THEN type WHEN 'subject' THEN subject
        WHEN 'ordering_key' THEN ordering_key
        ELSE pg_catalog.jsonb_path_query_first(payload::jsonb, key::jsonpath, '{}', true) #>> '{}' END;
EXCEPTION
    WHEN OTHERS THEN RETURN NULL;
END
$$;

-- Its hash, of the organization too: keys of two never meet.
CREATE FUNCTION outbox.key_hash(org_id text, key text) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT pg_catalog.sha256(pg_catalog.convert_to(coalesce(org_id, '') || E'\x01' || key, 'UTF8'))
$$;

-- What becomes of events that share a key, in the transaction that routes them: which are dropped (and
-- told so), and when the one that is kept is due. One of each array an event and subscription.
-- A function, so that routing pays nothing for it where no key is in use: the statement is long enough.
CREATE FUNCTION outbox.use_keys(
    now timestamptz, slot smallint, events bigint[], subscriptions bigint[], orgs text[], keys bytea[],
    deliveries uuid[], dues timestamptz[]
) RETURNS TABLE (event_id bigint, subscription_id bigint, due_at timestamptz, dropped text)
LANGUAGE plpgsql SET search_path = '' AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH given AS MATERIALIZED (
        SELECT u.event_id, u.subscription_id, u.org_id, u.key, u.id, u.due_at, s.revision, s.once_for, s.debounce,
               s.debounce_max
        FROM unnest(events, subscriptions, orgs, keys, deliveries, dues)
            AS u (event_id, subscription_id, org_id, key, id, due_at)
        JOIN outbox.subscription s ON s.id = u.subscription_id
    ),
    -- Of a key that may be used once in a time, the first event; whose row comes back is that.
    firsts AS (
        INSERT INTO outbox.key_use AS k (subscription_id, key, event_id, delivery_id, since, until)
        SELECT DISTINCT ON (g.subscription_id, g.key) g.subscription_id, g.key, g.event_id, g.id, use_keys.now,
               use_keys.now + g.once_for
        FROM given g WHERE g.once_for IS NOT NULL
        ORDER BY g.subscription_id, g.key, g.event_id
        ON CONFLICT (subscription_id, key) DO UPDATE
        SET event_id = excluded.event_id, delivery_id = excluded.delivery_id, since = excluded.since,
            until = excluded.until
        WHERE k.until <= use_keys.now
        RETURNING k.subscription_id, k.event_id
    ),
    -- Of a key that is debounced, the latest event; the delivery before it is called off while it waits.
    bursts AS MATERIALIZED (
        SELECT g.*, k.delivery_id AS before, k.since,
               pg_catalog.row_number() OVER (PARTITION BY g.subscription_id, g.key ORDER BY g.event_id DESC) = 1 AS last
        FROM given g LEFT JOIN outbox.key_use k ON k.subscription_id = g.subscription_id AND k.key = g.key
        WHERE g.debounce IS NOT NULL
    ),
    outdated AS MATERIALIZED (
        SELECT d.*, b.later FROM (
            SELECT b.before AS id, pg_catalog.max(b.event_id) AS later FROM bursts b
            WHERE b.before IS NOT NULL GROUP BY b.before ORDER BY b.before) b
        CROSS JOIN LATERAL (
            SELECT * FROM outbox.delivery d WHERE d.id = b.id
            OFFSET 0 FOR UPDATE SKIP LOCKED) d
        WHERE d.state = 'held' OR d.state = 'scheduled' AND d.attempts = 0 AND d.due_at > use_keys.now
    ),
    overtaken AS (
        DELETE FROM outbox.delivery d WHERE d.id = ANY (ARRAY(SELECT o.id FROM outdated o))
    ),
    rested AS MATERIALIZED (
        SELECT x.*, least(x.due_at + x.debounce, greatest(x.due_at, x.begun + x.debounce_max)) AS due_then FROM (
            SELECT b.*, CASE WHEN b.before = ANY (ARRAY(SELECT o.id FROM outdated o)) THEN b.since
                             ELSE use_keys.now END AS begun
            FROM bursts b) x
    ),
    kept AS (
        INSERT INTO outbox.key_use AS k (subscription_id, key, event_id, delivery_id, since, until)
        SELECT r.subscription_id, r.key, r.event_id, r.id, r.begun, r.due_then FROM rested r WHERE r.last
        ON CONFLICT (subscription_id, key) DO UPDATE
        SET event_id = excluded.event_id, delivery_id = excluded.delivery_id, since = excluded.since,
            until = excluded.until
    ),
    judged AS MATERIALIZED (
        SELECT g.event_id, g.subscription_id, g.org_id, g.id, g.revision, r.due_then,
               CASE WHEN g.once_for IS NOT NULL AND f.event_id IS NULL THEN 'duplicate'
                    WHEN NOT r.last THEN 'debounced' END AS dropped
        FROM given g
        LEFT JOIN firsts f ON f.subscription_id = g.subscription_id AND f.event_id = g.event_id
        LEFT JOIN rested r ON r.subscription_id = g.subscription_id AND r.event_id = g.event_id
    ),
    -- A dropped one is matched first: its fact comes after that of its routing.
    told AS (
        INSERT INTO outbox.journal (slot, at, fact, event_id, delivery_id, subscription_id, org_id, revision, budget,
            attempt, charged, reason, detail)
        SELECT use_keys.slot, use_keys.now + interval '1 microsecond', 'cancelled', j.event_id, j.id, j.subscription_id,
               j.org_id, j.revision, 1, 0, false, j.dropped, NULL::jsonb
        FROM judged j WHERE j.dropped IS NOT NULL
        UNION ALL
        SELECT use_keys.slot, use_keys.now, 'cancelled', o.event_id, o.id, o.subscription_id, o.org_id, o.revision,
               o.budget, o.attempts, false, 'debounced', pg_catalog.jsonb_build_object('by', o.later)
        FROM outdated o
    )
    SELECT j.event_id, j.subscription_id, j.due_then, j.dropped FROM judged j;
END
$$;

-- What the deliveries of a subscription take turns by.
CREATE FUNCTION outbox.turn_key(
    key text, type text, org_id text, subject text, ordering_key text, payload json
) RETURNS bigint
LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN key IS NULL THEN outbox.order_key(org_id, ordering_key, subject, payload)
        ELSE pg_catalog.hashtextextended(coalesce(org_id, '') || E'\x01' || outbox.key_text(
            key, type, org_id, subject, ordering_key, payload), 7861) END
$$;

-- How many seconds ahead an event goes: a number, or what an SQL/JSON path finds; a day at most.
CREATE FUNCTION outbox.priority_s(priority text, payload json) RETURNS double precision
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
BEGIN
    RETURN greatest(0, least(86400, CASE WHEN priority ~ '^[0-9]+$' THEN priority::double precision
        ELSE coalesce((pg_catalog.jsonb_path_query_first(payload::jsonb, priority::jsonpath, '{}', true)
                       #>> '{}')::double precision, 0) END));
EXCEPTION
    WHEN OTHERS THEN RETURN 0;
END
$$;

-- When a delivery expires: as its event says, or its subscription's time to live after it is due.
CREATE FUNCTION outbox.expiry(
    expires_at timestamptz, deliver_at timestamptz, created_at timestamptz, delay interval, ttl interval
) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN ttl IS NULL THEN expires_at
        ELSE least(expires_at, least(coalesce(deliver_at, created_at), '9000-01-01Z') + coalesce(delay, '0') + ttl) END
$$;

-- Moving the due time of a delivery is a fact of its own.
ALTER TABLE outbox.journal DROP CONSTRAINT journal_fact_check;
ALTER TABLE outbox.journal ADD CONSTRAINT journal_fact_check CHECK (fact IN (
    'routed', 'attempt_failed', 'delivered', 'dead', 'lease_expired', 'redriven', 'replayed',
    'cancelled', 'expired', 'discarded', 'held', 'released', 'carried', 'redacted', 'rescheduled')) NOT VALID;

-- -- progress ------------------------------------------------------------------------------------

-- What running attempts tell.
CREATE TABLE outbox.progress (
    delivery_id uuid PRIMARY KEY,
    percent     double precision CHECK (percent BETWEEN 0 AND 100),
    note        text,
    metadata    jsonb,
    at          timestamptz NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- -- schedules -----------------------------------------------------------------------------------

-- Events that come by the clock. `next_at` is the tick that is due next; whoever moves it on emits, in
-- the same statement, so that a tick is one event however many daemons run.
CREATE TABLE outbox.schedule (
    name       text PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9._-]{1,100}$'),
    cron       text NOT NULL,
    timezone   text NOT NULL,
    type       text NOT NULL,
    org_id     text CHECK (org_id <> ''),
    payload    json,
    missed     text NOT NULL CHECK (missed IN ('skip', 'one', 'all')),
    state      text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused')),
    next_at    timestamptz NOT NULL,
    last_at    timestamptz,
    emitted    bigint NOT NULL DEFAULT 0,
    skipped    bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    made_by    text NOT NULL DEFAULT session_user
);
CREATE INDEX schedule_due ON outbox.schedule (next_at) WHERE state = 'active';

REVOKE ALL ON FUNCTION outbox.use_keys(timestamptz, smallint, bigint[], bigint[], text[], bytea[], uuid[],
    timestamptz[]), outbox.key_text(text, text, text, text, text, json), outbox.key_hash(text, text),
    outbox.turn_key(text, text, text, text, text, json), outbox.priority_s(text, json),
    outbox.expiry(timestamptz, timestamptz, timestamptz, interval, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.use_keys(timestamptz, smallint, bigint[], bigint[], text[], bytea[], uuid[],
    timestamptz[]), outbox.key_text(text, text, text, text, text, json), outbox.key_hash(text, text),
    outbox.turn_key(text, text, text, text, text, json), outbox.priority_s(text, json),
    outbox.expiry(timestamptz, timestamptz, timestamptz, interval, interval) TO outbox_daemon;
-- What verifying takes.
GRANT EXECUTE ON FUNCTION outbox.key_text(text, text, text, text, text, json),
    outbox.turn_key(text, text, text, text, text, json),
    outbox.expiry(timestamptz, timestamptz, timestamptz, interval, interval) TO outbox_reader;
GRANT SELECT ON outbox.key_use, outbox.progress, outbox.schedule TO outbox_daemon, outbox_reader;
GRANT INSERT, UPDATE, DELETE ON outbox.key_use, outbox.progress, outbox.schedule TO outbox_daemon;
