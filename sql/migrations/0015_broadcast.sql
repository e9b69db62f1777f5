-- Broadcasts: how an event becomes a message of Supabase Realtime.
-- compatible-from: 10
--
-- A subscription of kind `broadcast` is a lane with a negative number. Relays lease lanes above zero
-- for workers; these are served by the daemon itself, which writes message and settle in one transaction.

-- The same as broadcast_value within objects and arrays; what lies deeper than 32 levels is left as it is.
CREATE FUNCTION outbox.broadcast_inside(value jsonb, depth int DEFAULT 0) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = '' AS $$
#variable_conflict use_variable
BEGIN
    IF depth > 32 THEN
        RETURN value;
    END IF;
    RETURN CASE pg_catalog.jsonb_typeof(value)
        WHEN 'object' THEN (SELECT coalesce(pg_catalog.jsonb_object_agg(m.key, outbox.broadcast_inside(m.value, depth + 1)), '{}')
                            FROM pg_catalog.jsonb_each(value) m)
        WHEN 'array' THEN (SELECT coalesce(pg_catalog.jsonb_agg(outbox.broadcast_inside(m.value, depth + 1) ORDER BY m.ordinality), '[]')
                           FROM pg_catalog.jsonb_array_elements(value) WITH ORDINALITY m (value, ordinality))
        ELSE outbox.broadcast_value(value) END;
END
$$;

-- A number as every client reads it: one that a double cannot hold becomes a string.
CREATE FUNCTION outbox.broadcast_value(value jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN pg_catalog.jsonb_typeof(value) = 'number'
                     AND pg_catalog.octet_length(value::text) > 15
                     AND (pg_catalog.octet_length(value::text) > 300 OR value::text::float8::text::numeric <> value::numeric)
                THEN pg_catalog.to_jsonb(value::text)
                -- Taken apart only where digits stand in it that may be such a number.
                WHEN pg_catalog.jsonb_typeof(value) IN ('object', 'array') AND value::text ~ '[0-9][0-9.e+-]{15}'
                THEN outbox.broadcast_inside(value) ELSE value END
$$;

-- A payload as jsonb, null where jsonb cannot hold it: \u0000, a lone surrogate, a number without end.
CREATE FUNCTION outbox.broadcast_data(payload json) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = '' AS $$
BEGIN
    RETURN payload::pg_catalog.jsonb;
EXCEPTION
    WHEN OTHERS THEN RETURN NULL;
END
$$;

-- Claims broadcasts that are due (their rows are locked) and makes their messages. `claim_transport`
-- is sql or http. A row each, also for what cannot be a message: `unfit` says why; `passed` says that a
-- newer one of its subject, claimed with it, stands for it.
CREATE FUNCTION outbox.broadcast_claim(claim_now timestamptz, claim_transport text, rows_max int)
RETURNS TABLE (id uuid, event_id bigint, event_slot smallint, subscription_id bigint, revision int, generation int,
    lane bigint, org_id text, order_key bigint, attempts int, budget int, expiries int, expires_at timestamptz,
    age_limit_at timestamptz, retry text, topic text, event text, message jsonb, private boolean, passed boolean,
    unfit text)
LANGUAGE plpgsql SET search_path = '' AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH RECURSIVE clock AS MATERIALIZED (
        SELECT coalesce(claim_now, pg_catalog.clock_timestamp()) AS now,
               (SELECT last_value FROM outbox.ring_slot)::smallint AS slot
    ),
    scan (queue, lane) AS (
        SELECT q.queue, first.lane FROM (VALUES (0), (1), (2)) q (queue) CROSS JOIN LATERAL (
            SELECT d.lane FROM outbox.delivery d
            WHERE d.state = 'scheduled' AND d.queue = q.queue AND d.lane < 0
            ORDER BY d.lane, d.due_at LIMIT 1) first
        UNION ALL
        SELECT s.queue, next.lane FROM scan s CROSS JOIN LATERAL (
            SELECT d.lane FROM outbox.delivery d
            WHERE d.state = 'scheduled' AND d.queue = s.queue AND d.lane > s.lane AND d.lane < 0
            ORDER BY d.lane, d.due_at LIMIT 1) next
    ),
    lanes AS MATERIALIZED (
        SELECT s.queue, s.lane, pg_catalog.count(*) OVER () AS n FROM scan s CROSS JOIN LATERAL (
            SELECT FROM outbox.subscription x
            WHERE x.id = -s.lane AND x.state = 'active' AND x.config ->> 'transport' = claim_transport
            OFFSET 0) x
    ),
    picked AS MATERIALIZED (
        SELECT p.* FROM clock, lanes l CROSS JOIN LATERAL (
            SELECT d.* FROM outbox.delivery d
            WHERE d.state = 'scheduled' AND d.queue = l.queue AND d.lane = l.lane AND d.due_at <= clock.now
            ORDER BY d.due_at LIMIT greatest(1, rows_max / l.n)
            FOR UPDATE SKIP LOCKED) p
    ),
    -- As the revision says that routed it; what is past its expiry or age is left to tend_due.sql.
    messages AS MATERIALIZED (
        SELECT p.*, e.type, e.subject, e.org_id AS event_org, e.data IS NULL AS unreadable, s.retry,
               coalesce(r.config, s.config) AS config,
               -- A captured row has its columns in `record`, an emitted event in the payload itself. This stands
               -- here because no function with a subquery is inlined, and a call would double the price.
               pg_catalog.jsonb_build_object('id', p.event_id::text, 'delivery', p.id, 'type', e.type, 'subject', e.subject,
                   'operation', e.data -> 'operation', 'changed', e.data -> 'changed',
                   'record', CASE WHEN pg_catalog.jsonb_typeof(e.record) = 'object' THEN coalesce((
                       SELECT pg_catalog.jsonb_object_agg(n.name, CASE WHEN pg_catalog.jsonb_typeof(e.record -> n.name) IN ('number', 'object', 'array')
                           THEN outbox.broadcast_value(e.record -> n.name) ELSE e.record -> n.name END)
                       FROM pg_catalog.jsonb_array_elements_text(coalesce(r.config, s.config) -> 'include') n (name)
                       WHERE e.record ? n.name), '{}') END) AS message
        FROM clock, picked p
        CROSS JOIN LATERAL (
            SELECT s.config, s.revision, s.state, s.retry FROM outbox.subscription s WHERE s.id = p.subscription_id
            OFFSET 0) s
        LEFT JOIN LATERAL (
            SELECT r.config -> 'config' AS config FROM outbox.subscription_revision r
            WHERE p.revision <> s.revision AND r.subscription_id = p.subscription_id AND r.revision = p.revision
            OFFSET 0) r ON true
        CROSS JOIN LATERAL (
            SELECT e.*, CASE WHEN e.data ?& '{operation,schema,table}' THEN e.data -> 'record' ELSE e.data END AS record FROM (
                SELECT e.type, e.org_id, e.subject, outbox.broadcast_data(e.payload) AS data
                FROM outbox.event e WHERE e.slot = p.event_slot AND e.id = p.event_id
                OFFSET 0) e
            OFFSET 0) e
        WHERE s.state = 'active' AND coalesce(p.expires_at > clock.now, true) AND coalesce(p.age_limit_at > clock.now, true)
    ),
    -- The newest of a subject within the window stands for the others; what has no subject waits too.
    windows AS MATERIALIZED (
        SELECT m.*, (m.config ->> 'prefix') || ':' || m.event_org AS topic, coalesce(m.config ->> 'event_name', m.type) AS event,
               m.config ->> 'coalesce_s' IS NOT NULL AND m.subject IS NOT NULL AND
                   m.event_id < pg_catalog.max(m.event_id) OVER (PARTITION BY m.subscription_id, m.event_org, m.subject) AS passed,
               pg_catalog.min(m.due_at) OVER (PARTITION BY m.subscription_id, m.event_org, m.subject)
                   + coalesce((m.config ->> 'coalesce_s')::float8, 0) * interval '1 s' AS ripe_at
        FROM messages m
    ),
    judged AS MATERIALIZED (
        SELECT w.*, CASE
            WHEN w.unreadable THEN 'payload_unreadable'
            WHEN w.topic IS NULL THEN 'no_organization'
            WHEN pg_catalog.octet_length(w.topic) > 246 THEN 'topic_too_long'
            WHEN pg_catalog.octet_length(w.event) > 255 THEN 'event_too_long'
            WHEN pg_catalog.octet_length(w.message::text) > 256000 THEN 'payload_too_large' END AS unfit
        FROM clock, windows w
        WHERE w.config ->> 'coalesce_s' IS NULL OR w.ripe_at <= clock.now
    )
    SELECT j.id, j.event_id, j.event_slot, j.subscription_id, j.revision, j.generation, j.lane, j.org_id, j.order_key,
           j.attempts, j.budget, j.expiries, j.expires_at, j.age_limit_at, j.retry, j.topic, j.event, j.message,
           (j.config ->> 'private')::boolean, j.passed, j.unfit
    FROM judged j ORDER BY j.event_id;
END
$$;

-- Broadcast a table's changes from its own transactions, without a hop: a trigger that calls
-- realtime.broadcast_changes. It costs two transaction ids a row and promises nothing: what Realtime does
-- not take is gone. Records hold the primary key and the columns of `include`; the row before a change is
-- told by its key alone. A row that moves to another organization is deleted for the one and new for the
-- other. Runs with the rights of whoever installs it. Returns the topic's prefix.
CREATE FUNCTION outbox.broadcast_direct(relation regclass, org_column text, topic_prefix text DEFAULT 'orders', include text[] DEFAULT '{}')
RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $install$
#variable_conflict use_variable
DECLARE
    c pg_catalog.pg_class;
    type_prefix text;
    missing text;
    keys text[];
    name text;
    thin_new text;
    thin_old text;
BEGIN
    SELECT * INTO STRICT c FROM pg_catalog.pg_class WHERE oid = relation;
    IF c.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION 'outbox: % is not a table', relation USING ERRCODE = 'wrong_object_type';
    ELSIF NOT pg_catalog.pg_has_role(c.relowner, 'USAGE') THEN
        RAISE EXCEPTION 'outbox: only the owner of % (role %) may watch it', relation, c.relowner::regrole USING ERRCODE = 'insufficient_privilege';
    ELSIF org_column IS NULL THEN
        RAISE EXCEPTION 'outbox: without an organization column nothing can be broadcast' USING ERRCODE = 'invalid_parameter_value';
    ELSIF topic_prefix IS NULL OR topic_prefix !~ '^[A-Za-z0-9_.-]{1,56}$' THEN
        RAISE EXCEPTION 'outbox: a topic prefix is 1 to 56 letters, digits, "_", "." or "-", such as orders' USING ERRCODE = 'invalid_parameter_value';
    ELSIF pg_catalog.to_regprocedure('realtime.broadcast_changes(text,text,text,text,text,record,record,text)') IS NULL THEN
        RAISE EXCEPTION 'outbox: there is no function realtime.broadcast_changes; on Supabase enable Realtime, elsewhere run: SELECT outbox.install_realtime_shim()'
            USING ERRCODE = 'undefined_function';
    END IF;
    SELECT n.column INTO missing FROM pg_catalog.unnest(include || org_column) AS n("column")
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                      WHERE a.attrelid = relation AND a.attname = n.column AND a.attnum > 0 AND NOT a.attisdropped);
    IF FOUND THEN
        RAISE EXCEPTION 'outbox: table % has no column %', relation, pg_catalog.quote_ident(missing) USING ERRCODE = 'undefined_column';
    END IF;
    keys := ARRAY(SELECT a.attname FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
                  WHERE i.indrelid = relation AND i.indisprimary ORDER BY a.attnum);
    IF keys = '{}' THEN
        RAISE EXCEPTION 'outbox: table % has no primary key, by which clients would know the row', relation USING ERRCODE = 'invalid_parameter_value';
    END IF;
    type_prefix := pg_catalog.regexp_replace(c.relname, '[^A-Za-z0-9_-]', '_', 'g');
    thin_new := (SELECT pg_catalog.string_agg(pg_catalog.format('outbox.broadcast_value(pg_catalog.to_jsonb(NEW.%1$I)) AS %1$I', n.column), ', ')
                 FROM (SELECT DISTINCT x.column FROM pg_catalog.unnest(keys || include) x("column")) n);
    thin_old := (SELECT pg_catalog.string_agg(pg_catalog.format('outbox.broadcast_value(pg_catalog.to_jsonb(OLD.%1$I)) AS %1$I', n.column), ', ') FROM pg_catalog.unnest(keys) n("column"));
    PERFORM outbox.unbroadcast_direct(relation);
    name := pg_catalog.format('outbox.%I', 'direct_' || relation::oid);
    EXECUTE pg_catalog.format('CREATE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = %L SET timezone = %L AS %L', name, '', 'UTC',
        pg_catalog.format($body$
DECLARE
    _new pg_catalog.record;
    _old pg_catalog.record;
    _from pg_catalog.text;
    _to pg_catalog.text;
BEGIN
    IF TG_OP <> 'INSERT' THEN
        SELECT %2$s INTO _old;
        _from := nullif(OLD.%1$I::pg_catalog.text, '');
    END IF;
    IF TG_OP <> 'DELETE' THEN
        SELECT %3$s INTO _new;
        _to := nullif(NEW.%1$I::pg_catalog.text, '');
    END IF;
    IF _from = _to THEN
        PERFORM realtime.broadcast_changes(%4$L || _to, %5$L, 'UPDATE', TG_TABLE_NAME, TG_TABLE_SCHEMA, _new, _old);
        RETURN NULL;
    END IF;
    IF _from IS NOT NULL THEN
        PERFORM realtime.broadcast_changes(%4$L || _from, %6$L, 'DELETE', TG_TABLE_NAME, TG_TABLE_SCHEMA, NULL, _old);
    END IF;
    IF _to IS NOT NULL THEN
        PERFORM realtime.broadcast_changes(%4$L || _to, %7$L, 'INSERT', TG_TABLE_NAME, TG_TABLE_SCHEMA, _new, NULL);
    END IF;
    RETURN NULL;
END
$body$, org_column, thin_old, thin_new, topic_prefix || ':', type_prefix || '.updated', type_prefix || '.deleted', type_prefix || '.inserted'));
    EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s() FROM PUBLIC', name);
    EXECUTE pg_catalog.format('COMMENT ON FUNCTION %s() IS %L', name, pg_catalog.jsonb_build_object(
        'broadcast', 'direct', 'topic', topic_prefix || ':{org_id}', 'org_column', org_column, 'include', include));
    EXECUTE pg_catalog.format('CREATE TRIGGER "!outbox_direct" AFTER INSERT OR UPDATE OR DELETE ON %s FOR EACH ROW EXECUTE FUNCTION %s()', relation, name);
    RETURN topic_prefix;
END
$install$;

-- Remove a table's direct broadcasts; returns whether there were any.
CREATE FUNCTION outbox.unbroadcast_direct(relation regclass) RETURNS boolean
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    f regprocedure := pg_catalog.to_regprocedure(pg_catalog.format('outbox.%I()', 'direct_' || relation::oid));
BEGIN
    IF f IS NULL THEN
        RETURN false;
    END IF;
    EXECUTE pg_catalog.format('DROP TRIGGER IF EXISTS "!outbox_direct" ON %s', relation);
    EXECUTE pg_catalog.format('DROP FUNCTION %s', f);
    RETURN true;
END
$$;

-- Tables that broadcast directly, with their options.
CREATE FUNCTION outbox.direct_broadcasts() RETURNS TABLE (schema text, "table" text, options jsonb)
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT n.nspname, c.relname, pg_catalog.obj_description(p.oid, 'pg_proc')::jsonb
    FROM pg_catalog.pg_proc p LEFT JOIN pg_catalog.pg_trigger t ON t.tgfoid = p.oid AND t.tgparentid = 0
    LEFT JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE p.pronamespace = 'outbox'::regnamespace AND p.proname ~ '^direct_[0-9]+$' ORDER BY 1, 2
$$;

REVOKE ALL ON FUNCTION outbox.broadcast_direct(regclass, text, text, text[]), outbox.unbroadcast_direct(regclass),
    outbox.direct_broadcasts(), outbox.broadcast_value(jsonb), outbox.broadcast_inside(jsonb, int), outbox.broadcast_data(json),
    outbox.broadcast_claim(timestamptz, text, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.broadcast_value(jsonb), outbox.broadcast_inside(jsonb, int), outbox.broadcast_data(json),
    outbox.broadcast_claim(timestamptz, text, int) TO outbox_daemon;
GRANT EXECUTE ON FUNCTION outbox.direct_broadcasts() TO outbox_daemon, outbox_reader;
