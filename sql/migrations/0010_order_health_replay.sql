-- Order by key, the health of destinations, replays, redaction.
-- compatible-from: 9
--
-- Programs of level 9 run on this schema. The first ordered subscription ends that: they do not
-- know order, so it raises `compatible_from` of this migration to 10 (subscription_ordered.sql).

-- -- order ---------------------------------------------------------------------------------------

-- What follows when an ordered delivery ends badly: `block` holds the later ones of its key until
-- it is redriven or discarded, `park` sends them after it into the dead letters, `skip` goes on.
-- Null: unordered.
ALTER TABLE outbox.subscription ADD COLUMN order_mode text CHECK (order_mode IN ('block', 'park', 'skip'));

-- Deliveries of one subscription and one `order_key` go one after another, in order of event id.
-- A hash, because a key may be longer than an index takes: two keys that collide wait for each other.
ALTER TABLE outbox.delivery ADD COLUMN order_key bigint;
ALTER TABLE outbox.dead_letter ADD COLUMN order_key bigint;
CREATE INDEX delivery_order ON outbox.delivery (subscription_id, order_key, event_id) WHERE order_key IS NOT NULL;
CREATE INDEX dead_letter_order ON outbox.dead_letter (subscription_id, order_key, event_id) WHERE order_key IS NOT NULL;

-- Keys whose next delivery may have its turn. Written by whoever ends one, read by relays.
CREATE TABLE outbox.order_signal (
    id              bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    subscription_id bigint NOT NULL,
    order_key       bigint NOT NULL,
    at              timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0);
CREATE INDEX order_signal_at ON outbox.order_signal (at, id);

-- The key of an event: what emit was given, or else the captured row, whose lock makes the order of
-- ids that of commits. An emitted event without a key has no order.
CREATE FUNCTION outbox.order_key(org_id text, ordering_key text, subject text, payload json) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT pg_catalog.hashtextextended(
        coalesce(org_id, '') || E'\x01' || coalesce(ordering_key,
            CASE WHEN pg_catalog.starts_with(payload::text, '{"operation":"') THEN subject END), 7861)
$$;

-- One place for all the ways in which a delivery or a dead letter can go.
CREATE FUNCTION outbox.signal_order() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    INSERT INTO outbox.order_signal (subscription_id, order_key) VALUES (OLD.subscription_id, OLD.order_key);
    PERFORM outbox.ring_bell();
    RETURN NULL;
END
$$;
CREATE TRIGGER signal_order AFTER DELETE ON outbox.delivery
    FOR EACH ROW WHEN (OLD.order_key IS NOT NULL) EXECUTE FUNCTION outbox.signal_order();
CREATE TRIGGER signal_order AFTER DELETE ON outbox.dead_letter
    FOR EACH ROW WHEN (OLD.order_key IS NOT NULL) EXECUTE FUNCTION outbox.signal_order();

-- -- urgency -------------------------------------------------------------------------------------

-- `again`: replayed, redriven and backfilled deliveries. First attempts (0), retries (1) and those
-- (2) stand in queues of their own, so that a million of one kind hides none of another.
ALTER TABLE outbox.delivery ADD COLUMN again boolean NOT NULL DEFAULT false;
ALTER TABLE outbox.delivery ADD COLUMN queue smallint NOT NULL
    GENERATED ALWAYS AS (CASE WHEN again THEN 2 WHEN attempts > 0 THEN 1 ELSE 0 END) STORED;
CREATE INDEX delivery_due ON outbox.delivery (queue, lane, due_at) WHERE state = 'scheduled';
-- Programs of level 9 look for due work by delivery_fresh and delivery_retry: those stay until the
-- next migration, which can drop them.

-- -- health --------------------------------------------------------------------------------------

-- `circuit`: probe a destination that fails everything instead of trying it with every delivery.
-- `disable_after`: disable it when it failed everything for so long; null means never.
ALTER TABLE outbox.endpoint
    ADD COLUMN circuit boolean NOT NULL DEFAULT true,
    ADD COLUMN disable_after interval DEFAULT '5 days' CHECK (disable_after > interval '0');

-- Lanes that fail; one that delivers has no row. `failing_*` counts attempts that were not accepted
-- since the last that was, `down_*` those that got no answer or a server error since the last that
-- did. The circuit is open while `probe_at` is set: one delivery may go then, and `probing` says
-- that it went.
CREATE TABLE outbox.lane_health (
    lane           bigint PRIMARY KEY,
    failing_since  timestamptz NOT NULL,
    failed_at      timestamptz NOT NULL,
    failures       bigint NOT NULL,
    down_since     timestamptz,
    down_failures  bigint NOT NULL DEFAULT 0,
    probe_at       timestamptz,
    probe_gap      interval,
    probing        boolean NOT NULL DEFAULT false,
    warned_percent smallint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- Emit one of our own events (`outbox.*`) in the caller's transaction; returns its id.
CREATE FUNCTION outbox.announce(type text, org_id text, subject text, payload json) RETURNS bigint
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
    INSERT INTO outbox.event (id, slot, type, org_id, subject, payload, created_at)
    VALUES (v_id, v_slot, type, org_id, subject, payload, pg_catalog.clock_timestamp());
    INSERT INTO outbox.pending (id, slot, org) VALUES (v_id, v_slot, coalesce(org_id, ''));
    PERFORM outbox.ring_bell();
    RETURN v_id;
END
$$;

-- -- replay --------------------------------------------------------------------------------------

-- A replay and how far it is: events up to `position` are done, those up to `ceiling` belong to it.
CREATE TABLE outbox.replay (
    id         text PRIMARY KEY CHECK (id ~ '^[A-Za-z0-9._:-]{1,100}$'),
    mode       text NOT NULL CHECK (mode IN ('redeliver', 're-emit', 'backfill')),
    state      text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'paused', 'done', 'aborted')),
    org_id     text,
    filter     jsonb NOT NULL,
    made_by    text NOT NULL DEFAULT session_user,
    why        text NOT NULL,
    rate_per_s double precision NOT NULL CHECK (rate_per_s > 0),
    position   bigint NOT NULL,
    ceiling    bigint NOT NULL,
    counts     jsonb NOT NULL DEFAULT '{}',
    made_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    moved_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at   timestamptz
) WITH (fillfactor = 50);
CREATE INDEX replay_running ON outbox.replay (moved_at) WHERE state = 'running';

-- -- redaction -----------------------------------------------------------------------------------

ALTER TABLE outbox.journal DROP CONSTRAINT journal_fact_check;
ALTER TABLE outbox.journal ADD CONSTRAINT journal_fact_check CHECK (fact IN (
    'routed', 'attempt_failed', 'delivered', 'dead', 'lease_expired', 'redriven', 'replayed',
    'cancelled', 'expired', 'discarded', 'held', 'released', 'carried', 'redacted')) NOT VALID;

-- What stands in place of a redacted payload.
CREATE FUNCTION outbox.tombstone() RETURNS json
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT '{"redacted":true}'::json $$;

-- As before, with one exception more: a transaction that says so may put the tombstone in place of
-- an event's contents and take the details from facts. Which event, when, for whom stays.
CREATE OR REPLACE FUNCTION outbox.refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' AND pg_catalog.current_setting('outbox.retention', true) = 'on' THEN
        RETURN NULL;
    END IF;
    -- Nested, because a condition may only name columns that the table has.
    IF TG_OP = 'UPDATE' AND pg_catalog.current_setting('outbox.redaction', true) = 'on' THEN
        IF TG_TABLE_NAME LIKE 'event%' THEN
            IF NEW.payload::pg_catalog.text = outbox.tombstone()::pg_catalog.text
                AND NEW.headers IS NULL AND NEW.subject IS NULL AND NEW.ordering_key IS NULL
                AND pg_catalog.to_jsonb(NEW) - '{payload,headers,subject,ordering_key}'::pg_catalog.text[]
                  = pg_catalog.to_jsonb(OLD) - '{payload,headers,subject,ordering_key}'::pg_catalog.text[] THEN
                RETURN NEW;
            END IF;
        ELSIF TG_TABLE_NAME LIKE 'journal%' THEN
            IF pg_catalog.to_jsonb(NEW) - 'detail' = pg_catalog.to_jsonb(OLD) - 'detail' THEN
                RETURN NEW;
            END IF;
        END IF;
    END IF;
    RAISE EXCEPTION 'outbox: % is append-only, % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = 'Facts are never changed; retention clears whole slots by itself.';
END
$$;

-- -- nodes and rights ----------------------------------------------------------------------------

-- The schema level of the program; programs of level 9 say nothing.
ALTER TABLE outbox.node ADD COLUMN level integer NOT NULL DEFAULT 9;

GRANT SELECT ON outbox.order_signal, outbox.lane_health, outbox.replay TO outbox_daemon, outbox_reader;
GRANT INSERT, UPDATE, DELETE ON outbox.order_signal, outbox.lane_health TO outbox_daemon;
GRANT INSERT, UPDATE ON outbox.replay TO outbox_daemon;
GRANT UPDATE (compatible_from) ON outbox.migration TO outbox_daemon;
GRANT UPDATE (payload, headers, subject, ordering_key) ON outbox.event TO outbox_daemon;
GRANT UPDATE (detail) ON outbox.journal TO outbox_daemon;
GRANT SELECT (circuit, disable_after) ON outbox.endpoint TO outbox_reader;
REVOKE ALL ON FUNCTION outbox.order_key(text, text, text, json), outbox.signal_order(), outbox.tombstone(),
    outbox.announce(text, text, text, json) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.order_key(text, text, text, json), outbox.tombstone() TO outbox_daemon, outbox_reader;
GRANT EXECUTE ON FUNCTION outbox.announce(text, text, text, json) TO outbox_daemon;
