-- The tables of Outbox: the log, the work still to do, the journal, the configuration.
-- compatible-from: 1
--
-- `event` and `journal` are append-only and live in a ring of eight slots: captured writes go to
-- the slot that the sequence `ring_slot` names, retention empties the oldest slot by TRUNCATE.
-- A sequence carries the pointer because reading one takes no snapshot: it never fails under
-- SERIALIZABLE and sees a rotation at once.

CREATE SCHEMA outbox;

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY ARRAY['outbox_owner', 'outbox_writer', 'outbox_daemon', 'outbox_reader'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
        EXCEPTION
            -- Roles belong to the cluster: another database may have made them, even just now.
            WHEN duplicate_object OR unique_violation THEN NULL;
        END;
    END LOOP;
END
$$;
-- Giving a function to another owner needs membership of that owner. Where the role was there
-- already and is another's, only that one can grant it, and may have done so.
DO $$
BEGIN
    GRANT outbox_owner TO CURRENT_USER;
EXCEPTION
    WHEN insufficient_privilege THEN
        IF NOT pg_has_role('outbox_owner', 'MEMBER') THEN
            RAISE EXCEPTION 'the role outbox_owner belongs to another installer; as that one or a superuser run: GRANT outbox_owner TO %',
                quote_ident(current_user) USING ERRCODE = 'insufficient_privilege';
        END IF;
END
$$;

CREATE SEQUENCE outbox.event_id AS bigint CACHE 1;
CREATE SEQUENCE outbox.object_id AS bigint CACHE 1;
-- The slot that is written now, 0 to 7.
CREATE SEQUENCE outbox.ring_slot AS bigint MINVALUE 0 MAXVALUE 7 START 0 CYCLE CACHE 1;
SELECT setval('outbox.ring_slot', 0, true);
-- 1: a relay is awake and polls; 2: relays sleep and want to be rung.
CREATE SEQUENCE outbox.bell AS bigint MINVALUE 1 MAXVALUE 2 START 1 CYCLE CACHE 1;
SELECT setval('outbox.bell', 2, true);

-- The migrations applied. `compatible_from` is the oldest migration level whose programs still
-- run on this schema.
CREATE TABLE outbox.migration (
    version         integer PRIMARY KEY,
    name            text NOT NULL,
    compatible_from integer NOT NULL,
    applied_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Who this database is. A change of epoch marks an adopted copy: events from `first_event_id` on
-- get delivery ids of their own, and what was owed up to `hold_event_id` is held.
CREATE TABLE outbox.installation (
    epoch             integer PRIMARY KEY,
    instance          text NOT NULL,
    system_identifier text NOT NULL,
    database_oid      bigint NOT NULL,
    salt              uuid NOT NULL,
    first_event_id    bigint NOT NULL,
    hold_event_id     bigint NOT NULL DEFAULT 0,
    at                timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE outbox.ring (
    slot      smallint PRIMARY KEY CHECK (slot BETWEEN 0 AND 7),
    opened_at timestamptz
);
INSERT INTO outbox.ring SELECT s, CASE WHEN s = 0 THEN clock_timestamp() END FROM generate_series(0, 7) s;

CREATE TABLE outbox.event (
    id           bigint NOT NULL,
    slot         smallint NOT NULL,
    type         text NOT NULL,
    org_id       text,
    subject      text,
    ordering_key text,
    payload      json NOT NULL,
    headers      json,
    created_at   timestamptz NOT NULL,
    deliver_at   timestamptz,
    expires_at   timestamptz,
    PRIMARY KEY (slot, id)
) PARTITION BY LIST (slot);

CREATE TABLE outbox.journal (
    slot            smallint NOT NULL,
    at              timestamptz NOT NULL,
    fact            text NOT NULL CHECK (fact IN (
        'routed', 'attempt_failed', 'delivered', 'dead', 'lease_expired', 'redriven', 'replayed',
        'cancelled', 'expired', 'discarded', 'held', 'released', 'carried')),
    event_id        bigint NOT NULL,
    delivery_id     uuid,
    subscription_id bigint,
    org_id          text,
    revision        integer,
    budget          integer,
    attempt         integer,
    charged         boolean,
    reason          text,
    due_at          timestamptz,
    detail          jsonb
) PARTITION BY LIST (slot);
CREATE INDEX journal_delivery ON outbox.journal (delivery_id) WHERE delivery_id IS NOT NULL;
CREATE INDEX journal_event ON outbox.journal (event_id);

DO $$
BEGIN
    FOR s IN 0..7 LOOP
        EXECUTE format('CREATE TABLE outbox.event_%s PARTITION OF outbox.event FOR VALUES IN (%s)', s, s);
        EXECUTE format('CREATE TABLE outbox.journal_%s PARTITION OF outbox.journal FOR VALUES IN (%s)', s, s);
    END LOOP;
END
$$;

-- Events not yet routed. `org` is the organization, '' for none; its C collation makes the loose
-- scan over organizations independent of the database's locale.
CREATE TABLE outbox.pending (
    id   bigint PRIMARY KEY,
    slot smallint NOT NULL,
    org  text COLLATE "C" NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0,
        autovacuum_analyze_threshold = 50000);
CREATE INDEX pending_org ON outbox.pending (org, id);

CREATE TABLE outbox.endpoint (
    id             bigint PRIMARY KEY DEFAULT nextval('outbox.object_id'),
    org_id         text,
    url            text NOT NULL,
    state          text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'disabled', 'removed')),
    state_reason   text,
    headers_sealed bytea,
    custom_headers boolean NOT NULL GENERATED ALWAYS AS (headers_sealed IS NOT NULL) STORED,
    concurrency    integer NOT NULL DEFAULT 1000 CHECK (concurrency BETWEEN 1 AND 100000),
    rate_per_s     double precision CHECK (rate_per_s > 0),
    timeout        interval NOT NULL DEFAULT '15 s',
    gone_disables  boolean NOT NULL DEFAULT true,
    revision       integer NOT NULL DEFAULT 1,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE outbox.secret (
    id          bigint PRIMARY KEY DEFAULT nextval('outbox.object_id'),
    endpoint_id bigint NOT NULL REFERENCES outbox.endpoint,
    kind        text NOT NULL CHECK (kind IN ('hmac', 'ed25519')),
    sealed      bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz
);
CREATE INDEX secret_endpoint ON outbox.secret (endpoint_id);

-- Type patterns as LIKE patterns, for matching without a subquery: `orders.*` becomes `orders.%`.
-- A lone `*` stays out: it matches all but our own types, which a LIKE pattern cannot say.
CREATE FUNCTION outbox.like_patterns(patterns text[]) RETURNS text[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(pg_catalog.array_agg(pg_catalog.regexp_replace(
        pg_catalog.replace(pg_catalog.replace(p, '\', '\\'), '_', '\_'), '\.\*$', '.%')), '{}')
    FROM pg_catalog.unnest(patterns) p WHERE p <> '*'
$$;

-- `lane` is the unit that limits count against: the endpoint, or the subscription where the
-- destination has no endpoint. Both draw their ids from one sequence, so lanes are unique.
CREATE TABLE outbox.subscription (
    id          bigint PRIMARY KEY DEFAULT nextval('outbox.object_id'),
    kind        text NOT NULL CHECK (kind IN ('webhook', 'email', 'pdf', 'broadcast', 'processor')),
    endpoint_id bigint REFERENCES outbox.endpoint,
    lane        bigint NOT NULL,
    org_id      text,
    all_orgs    boolean NOT NULL DEFAULT false,
    patterns    text[] NOT NULL CHECK (cardinality(patterns) > 0),
    likes       text[] NOT NULL GENERATED ALWAYS AS (outbox.like_patterns(patterns)) STORED,
    every       boolean NOT NULL GENERATED ALWAYS AS ('*' = ANY (patterns)) STORED,
    filter      text,
    retry       text NOT NULL,
    max_age     interval,
    body_format smallint NOT NULL DEFAULT 1 CHECK (body_format IN (1, 2)),
    state       text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused', 'disabled', 'removed')),
    -- 'filter_timeout': the filter took too long; it is not judged and what may match is held.
    state_reason text,
    revision    integer NOT NULL DEFAULT 1,
    active_from timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (all_orgs = (org_id IS NULL)),
    CHECK (kind <> 'webhook' OR endpoint_id IS NOT NULL)
);
CREATE INDEX subscription_org ON outbox.subscription (org_id) WHERE state <> 'removed' AND NOT all_orgs;
CREATE INDEX subscription_all_orgs ON outbox.subscription (id) WHERE state <> 'removed' AND all_orgs;
CREATE INDEX subscription_lane ON outbox.subscription (lane);

-- Every revision a delivery may refer to, so that its body can be made again byte for byte.
CREATE TABLE outbox.subscription_revision (
    subscription_id bigint NOT NULL,
    revision        integer NOT NULL,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    made_by         text NOT NULL DEFAULT session_user,
    config          jsonb NOT NULL,
    PRIMARY KEY (subscription_id, revision)
);

-- Rate tokens of lanes that have a rate.
CREATE TABLE outbox.lane_rate (
    lane   bigint PRIMARY KEY,
    tokens double precision NOT NULL,
    at     timestamptz NOT NULL
) WITH (fillfactor = 50);

-- Live deliveries only. What ended well is a fact in the journal, what ended badly a dead letter.
-- Each row is written, started once and deleted, by the batch: with less than half of a page filled
-- every start finds room beside it and touches no index (with 70 % only 48 % of them did).
CREATE TABLE outbox.delivery (
    id              uuid PRIMARY KEY,
    event_id        bigint NOT NULL,
    event_slot      smallint NOT NULL,
    subscription_id bigint NOT NULL,
    revision        integer NOT NULL,
    generation      integer NOT NULL DEFAULT 0,
    lane            bigint NOT NULL,
    org_id          text,
    state           text NOT NULL CHECK (state IN ('scheduled', 'leased', 'held')),
    due_at          timestamptz NOT NULL,
    expires_at      timestamptz,
    age_limit_at    timestamptz,
    token           bigint,
    lease_until     timestamptz,
    started_at      timestamptz,
    attempts        integer NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    budget          integer NOT NULL DEFAULT 1 CHECK (budget >= 1),
    expiries        integer NOT NULL DEFAULT 0,
    held_at         timestamptz,
    held_reason     text,
    CHECK ((state = 'leased') = (token IS NOT NULL AND lease_until IS NOT NULL)),
    CHECK (started_at IS NULL OR state = 'leased'),
    CHECK ((state = 'held') = (held_reason IS NOT NULL AND held_at IS NOT NULL))
) WITH (fillfactor = 45, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
        autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0,
        autovacuum_analyze_threshold = 50000);
-- First attempts and retries stand apart, so that a storm of retries hides no fresh work. None of
-- these indexes has `started_at`, which keeps the take a heap-only update.
CREATE INDEX delivery_fresh ON outbox.delivery (lane, due_at) WHERE state = 'scheduled' AND attempts = 0;
CREATE INDEX delivery_retry ON outbox.delivery (lane, due_at) WHERE state = 'scheduled' AND attempts > 0;
-- Written as an expression so that only the search for expired leases can use it: a count of one
-- lane's leases must never walk everybody's.
CREATE INDEX delivery_lease ON outbox.delivery ((lease_until AT TIME ZONE 'UTC')) WHERE state = 'leased';
CREATE INDEX delivery_lane_lease ON outbox.delivery (lane, lease_until) WHERE state = 'leased';
CREATE INDEX delivery_held_expiry ON outbox.delivery (expires_at) WHERE state = 'held' AND expires_at IS NOT NULL;
CREATE INDEX delivery_held ON outbox.delivery (lane, id) WHERE state = 'held';
CREATE INDEX delivery_event_slot ON outbox.delivery (event_slot);

CREATE TABLE outbox.dead_letter (
    id              uuid PRIMARY KEY,
    event_id        bigint NOT NULL,
    event_slot      smallint NOT NULL,
    subscription_id bigint NOT NULL,
    revision        integer NOT NULL,
    generation      integer NOT NULL,
    lane            bigint NOT NULL,
    org_id          text,
    attempts        integer NOT NULL,
    budget          integer NOT NULL,
    expiries        integer NOT NULL,
    expires_at      timestamptz,
    reason          text NOT NULL,
    detail          jsonb,
    died_at         timestamptz NOT NULL
);
CREATE INDEX dead_letter_lane ON outbox.dead_letter (lane, died_at);
CREATE INDEX dead_letter_died ON outbox.dead_letter (died_at);
CREATE INDEX dead_letter_event_slot ON outbox.dead_letter (event_slot);

CREATE TABLE outbox.dedupe (
    org        text NOT NULL,
    key        text NOT NULL,
    event_id   bigint NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (org, key)
);
CREATE INDEX dedupe_expires ON outbox.dedupe (expires_at);

-- Daemons and workers, for `status`: alive means polled with success lately.
CREATE TABLE outbox.node (
    id         uuid PRIMARY KEY,
    kind       text NOT NULL CHECK (kind IN ('relay', 'worker')),
    host       text NOT NULL,
    pid        integer NOT NULL,
    started_at timestamptz NOT NULL,
    polled_at  timestamptz NOT NULL
) WITH (fillfactor = 50);
