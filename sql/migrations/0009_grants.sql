-- Who may do what. Nothing here is for PUBLIC; Supabase's anon and authenticated get nothing.
-- compatible-from: 1

-- Rights of the role that definer functions run as: what capture and emit need, no more.
GRANT USAGE ON SCHEMA outbox TO outbox_owner, outbox_writer, outbox_daemon, outbox_reader;
GRANT INSERT ON outbox.event, outbox.pending TO outbox_owner;
GRANT SELECT, INSERT, UPDATE ON outbox.dedupe TO outbox_owner;
GRANT USAGE ON SEQUENCE outbox.event_id TO outbox_owner;
GRANT SELECT ON SEQUENCE outbox.ring_slot, outbox.bell TO outbox_owner;

GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO outbox_daemon, outbox_reader;
-- Sealed secrets are for the daemon alone.
REVOKE SELECT ON outbox.secret, outbox.endpoint FROM outbox_reader;
GRANT SELECT (id, org_id, url, state, state_reason, concurrency, rate_per_s, timeout, gone_disables,
              custom_headers, revision, created_at) ON outbox.endpoint TO outbox_reader;
GRANT SELECT (id, endpoint_id, kind, created_at, expires_at) ON outbox.secret TO outbox_reader;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA outbox TO outbox_reader;
GRANT SELECT, USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA outbox TO outbox_daemon;
GRANT INSERT ON outbox.event, outbox.journal, outbox.subscription_revision TO outbox_daemon;
GRANT INSERT, UPDATE, DELETE ON outbox.pending, outbox.delivery, outbox.dead_letter, outbox.dedupe,
    outbox.node, outbox.lane_rate TO outbox_daemon;
GRANT INSERT, UPDATE ON outbox.endpoint, outbox.subscription, outbox.ring TO outbox_daemon;
GRANT INSERT, UPDATE, DELETE ON outbox.secret TO outbox_daemon;
GRANT INSERT, UPDATE (hold_event_id) ON outbox.installation TO outbox_daemon;

-- A function's new owner must be allowed to create in its schema, for this moment only.
GRANT CREATE ON SCHEMA outbox TO outbox_owner;
DO $$
DECLARE
    f regprocedure;
    s int;
BEGIN
    FOR s IN 0..7 LOOP
        EXECUTE format('GRANT SELECT, INSERT, TRUNCATE ON outbox.event_%s, outbox.journal_%s TO outbox_daemon', s, s);
    END LOOP;
    FOR f IN SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'outbox'::regnamespace LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
    END LOOP;
    FOR f IN SELECT p.oid::regprocedure FROM pg_proc p
        WHERE p.pronamespace = 'outbox'::regnamespace AND p.prosecdef LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO outbox_owner', f);
    END LOOP;
END
$$;
REVOKE CREATE ON SCHEMA outbox FROM outbox_owner;
GRANT EXECUTE ON FUNCTION outbox.emit(text, anycompatible, text, text, text, json, timestamptz, timestamptz, text, interval)
    TO outbox_writer, outbox_daemon;
GRANT EXECUTE ON FUNCTION outbox.payload_bytes_max(), outbox.ring_bell() TO outbox_owner;
GRANT EXECUTE ON FUNCTION outbox.delivery_id(bigint, timestamptz, bigint, integer, uuid),
    outbox.delivery_hash(bigint, bigint, integer, uuid), outbox.like_patterns(text[]),
    outbox.type_matches(text, text[], boolean), outbox.filter_passes(text, json), outbox.ring_bell(), outbox.payload_bytes_max()
    TO outbox_daemon;
-- What lists need; these functions only read the catalogs.
GRANT EXECUTE ON FUNCTION outbox.like_patterns(text[]), outbox.type_matches(text, text[], boolean) TO outbox_reader;
GRANT EXECUTE ON FUNCTION outbox.watches(), outbox.capture_functions(oid), outbox.capture_unsafe_types(oid),
    outbox.capture_problems(oid, jsonb) TO outbox_daemon, outbox_reader;
