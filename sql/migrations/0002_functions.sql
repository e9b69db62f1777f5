-- The functions of Outbox: emit, the pieces the polled statements share, the guards, the grants.
-- compatible-from: 1

-- Facts stay as they were written: for everyone, the owner included. Retention empties whole
-- slots, and only in a transaction that says so.
CREATE FUNCTION outbox.refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' AND pg_catalog.current_setting('outbox.retention', true) = 'on' THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION 'outbox: % is append-only, % is refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation',
              HINT = 'Facts are never changed; retention clears whole slots by itself.';
END
$$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON outbox.event
    FOR EACH ROW EXECUTE FUNCTION outbox.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON outbox.journal
    FOR EACH ROW EXECUTE FUNCTION outbox.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON outbox.subscription_revision
    FOR EACH ROW EXECUTE FUNCTION outbox.refuse_change();

DO $$
DECLARE
    name text;
BEGIN
    FOR name IN SELECT p || '_' || s FROM unnest(ARRAY['event', 'journal']) p, generate_series(0, 7) s
        UNION ALL VALUES ('event'), ('journal'), ('subscription_revision') LOOP
        EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON outbox.%I '
                       'FOR EACH STATEMENT EXECUTE FUNCTION outbox.refuse_change()', name);
    END LOOP;
END
$$;

-- What makes a delivery's id unguessable and its own.
CREATE FUNCTION outbox.delivery_hash(
    event_id bigint, subscription_id bigint, generation integer, salt uuid
) RETURNS bytea
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT pg_catalog.sha256(
        pg_catalog.uuid_send(salt) || pg_catalog.int8send(event_id)
        || pg_catalog.int8send(subscription_id) || pg_catalog.int4send(generation))
$$;

-- The idempotency key of event x subscription x generation: a UUID of version 8 (RFC 9562 5.8)
-- whose first 48 bits are the event's time in milliseconds, so that keys of one hour lie side by
-- side in an index, and whose other bits come from SHA-256, so that they tell nothing.
-- One expression and no subquery, so that it is inlined where it is called.
CREATE FUNCTION outbox.delivery_id(
    event_id bigint, created_at timestamptz, subscription_id bigint, generation integer, salt uuid
) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT pg_catalog.encode(
        pg_catalog.substr(pg_catalog.int8send(
            pg_catalog.floor(pg_catalog.date_part('epoch', created_at) * 1000)::bigint), 3, 6)
        || pg_catalog.set_byte(pg_catalog.set_byte(
            pg_catalog.substr(outbox.delivery_hash(event_id, subscription_id, generation, salt), 1, 10),
            0, (pg_catalog.get_byte(outbox.delivery_hash(event_id, subscription_id, generation, salt), 0) & 15) | 128),
            2, (pg_catalog.get_byte(outbox.delivery_hash(event_id, subscription_id, generation, salt), 2) & 63) | 128),
        'hex')::uuid
$$;

-- Does a type match one of a subscription's patterns: exact, `orders.*`, or `*` (all but our own
-- `outbox.*`)? Takes the columns `likes` and `every`.
CREATE FUNCTION outbox.type_matches(type text, likes text[], every boolean) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT type LIKE ANY (likes) OR (every AND NOT pg_catalog.starts_with(type, 'outbox.'))
$$;

-- Does the payload pass a filter (an SQL/JSON path predicate)? What cannot be judged, for example
-- a payload holding \u0000, passes: a filter that fails must not lose an event.
CREATE FUNCTION outbox.filter_passes(filter text, payload json) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
BEGIN
    RETURN coalesce(pg_catalog.jsonb_path_match(payload::jsonb, filter::jsonpath, '{}', true), false);
EXCEPTION
    WHEN OTHERS THEN RETURN true;
END
$$;

-- The largest payload that emit takes and capture keeps whole, in bytes.
CREATE FUNCTION outbox.payload_bytes_max() RETURNS integer
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT 1048576';

-- Ring the relays if they sleep. Must run after the insert into `pending`: whoever reads "awake"
-- here had its row inserted before the relay looked for the last time.
CREATE FUNCTION outbox.ring_bell() RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    IF (SELECT last_value FROM outbox.bell) = 2 THEN
        PERFORM pg_catalog.pg_notify('outbox', '');
    END IF;
END
$$;

-- Type names are written with their schema in functions that run with definer rights: an empty
-- search_path still looks for types among the caller's temporary objects.
--
-- Emit one event in the caller's transaction; returns its id, or the first event's id where
-- `dedupe_key` was used before (in this organization, within its lifetime).
-- `payload` is json, jsonb, or text that holds JSON.
CREATE FUNCTION outbox.emit(
    type text,
    payload anycompatible,
    org_id text DEFAULT NULL,
    subject text DEFAULT NULL,
    ordering_key text DEFAULT NULL,
    headers json DEFAULT NULL,
    deliver_at timestamptz DEFAULT NULL,
    expires_at timestamptz DEFAULT NULL,
    dedupe_key text DEFAULT NULL,
    dedupe_for interval DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
#variable_conflict use_variable
DECLARE
    v_id bigint;
    v_first bigint;
    v_slot smallint;
    v_text pg_catalog.text;
BEGIN
    IF emit.type IS NULL OR emit.type !~ '^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$' OR pg_catalog.length(emit.type) > 200 THEN
        RAISE EXCEPTION 'outbox: event type % is not of the form orders.paid (letters, digits, _ and -, joined by dots, at most 200)',
            coalesce(pg_catalog.quote_literal(pg_catalog.left(emit.type, 200)), 'null') USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF pg_catalog.starts_with(emit.type, 'outbox.') THEN
        RAISE EXCEPTION 'outbox: types that begin with outbox. are reserved' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF emit.org_id = '' OR pg_catalog.length(emit.org_id) > 200 THEN
        RAISE EXCEPTION 'outbox: org_id must have 1 to 200 characters; leave it null for a system-wide event'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF pg_catalog.pg_typeof(payload) NOT IN ('pg_catalog.json'::pg_catalog.regtype, 'pg_catalog.jsonb'::pg_catalog.regtype, 'pg_catalog.text'::pg_catalog.regtype) THEN
        RAISE EXCEPTION 'outbox: payload must be json, jsonb or text, not %', pg_catalog.pg_typeof(payload)
            USING ERRCODE = 'datatype_mismatch', HINT = 'Write to_json(value).';
    END IF;
    -- Before it is parsed: the parser's error quotes its input, and payloads are not logged.
    v_text := coalesce(payload::pg_catalog.text, 'null');
    IF pg_catalog.octet_length(v_text) > outbox.payload_bytes_max() THEN
        RAISE EXCEPTION 'outbox: payload of % bytes exceeds the limit of % bytes',
            pg_catalog.octet_length(v_text), outbox.payload_bytes_max()
            USING ERRCODE = 'program_limit_exceeded',
                  HINT = 'Store the document and emit a reference to it.';
    END IF;
    IF headers IS NOT NULL AND (pg_catalog.json_typeof(headers) <> 'object' OR pg_catalog.octet_length(headers::pg_catalog.text) > 8192) THEN
        RAISE EXCEPTION 'outbox: headers must be a JSON object of at most 8192 bytes' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF pg_catalog.length(emit.subject) > 1000 OR pg_catalog.length(emit.ordering_key) > 1000
        OR pg_catalog.length(emit.dedupe_key) > 1000 THEN
        RAISE EXCEPTION 'outbox: subject, ordering_key and dedupe_key have at most 1000 characters'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF NOT pg_catalog.isfinite(coalesce(deliver_at, expires_at, '2000-01-01'::pg_catalog.timestamptz))
        OR NOT pg_catalog.isfinite(coalesce(expires_at, '2000-01-01'::pg_catalog.timestamptz)) THEN
        RAISE EXCEPTION 'outbox: deliver_at and expires_at must be finite; leave them null for none'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF expires_at IS NOT NULL AND expires_at <= coalesce(deliver_at, '-infinity'::pg_catalog.timestamptz) THEN
        RAISE EXCEPTION 'outbox: expires_at must be after deliver_at' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF ordering_key IS NOT NULL THEN
        -- Ids of one key must be drawn in the order in which their transactions commit.
        PERFORM pg_catalog.pg_advisory_xact_lock(
            pg_catalog.hashtextextended(coalesce(emit.org_id, '') || E'\x01' || ordering_key, 7861));
    END IF;
    -- The transaction id comes before the event id, whatever waits in between: a relay that passes
    -- the event id can then see that this transaction is in progress.
    PERFORM pg_catalog.pg_current_xact_id();
    v_id := pg_catalog.nextval('outbox.event_id');
    IF dedupe_key IS NOT NULL THEN
        INSERT INTO outbox.dedupe AS d (org, key, event_id, expires_at)
        VALUES (coalesce(emit.org_id, ''), dedupe_key, v_id, pg_catalog.clock_timestamp() + coalesce(dedupe_for, '7 days'))
        ON CONFLICT (org, key) DO UPDATE SET event_id = excluded.event_id, expires_at = excluded.expires_at
            WHERE d.expires_at <= pg_catalog.clock_timestamp()
        RETURNING d.event_id INTO v_first;
        IF v_first IS NULL THEN
            SELECT d.event_id INTO v_first FROM outbox.dedupe d
            WHERE d.org = coalesce(emit.org_id, '') AND d.key = dedupe_key;
            RETURN v_first;
        END IF;
    END IF;
    v_slot := (SELECT last_value FROM outbox.ring_slot);
    INSERT INTO outbox.event (id, slot, type, org_id, subject, ordering_key, payload, headers, created_at, deliver_at, expires_at)
    VALUES (v_id, v_slot, emit.type, emit.org_id, subject, ordering_key, v_text::pg_catalog.json, headers,
            pg_catalog.clock_timestamp(), deliver_at, expires_at);
    INSERT INTO outbox.pending (id, slot, org) VALUES (v_id, v_slot, coalesce(emit.org_id, ''));
    PERFORM outbox.ring_bell();
    RETURN v_id;
END
$$;
