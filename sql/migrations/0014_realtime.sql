-- Supabase Realtime: policies that keep organizations apart, and a stand-in of its schema for
-- development and tests, installed on demand and only where Supabase's own is absent.
-- compatible-from: 10

-- What install_realtime_policies made, so that doctor can try to get past it.
CREATE TABLE outbox.realtime_policy (
    topic_prefix text PRIMARY KEY,
    membership   text NOT NULL,
    user_column  text NOT NULL,
    org_column   text NOT NULL,
    made_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Is the schema `realtime` ours? Supabase's own never carries our comment.
CREATE FUNCTION outbox.realtime_shim_stands() RETURNS boolean
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(pg_catalog.starts_with(
        pg_catalog.obj_description(pg_catalog.to_regnamespace('realtime')::oid, 'pg_namespace'), 'outbox: '), false)
$$;

-- -- policies ------------------------------------------------------------------------------------

-- Equality of a user column with the token's subject, as text `sub`: by an index where there can be
-- one, false (never an error) for a subject that the column's type cannot hold.
CREATE FUNCTION outbox.realtime_same_user(type oid, "column" name) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT pg_catalog.format(CASE
        WHEN type = 'uuid'::regtype THEN
            'm.%1$I = (SELECT CASE WHEN s.sub ~ ''^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$'' THEN s.sub::uuid END FROM %2$s)'
        WHEN type IN ('int4'::regtype, 'int8'::regtype) THEN
            'm.%1$I = (SELECT CASE WHEN s.sub ~ ''^(0|-?[1-9][0-9]{0,17})$'' THEN s.sub::bigint END FROM %2$s)'
        WHEN type IN ('text'::regtype, 'varchar'::regtype) THEN
            -- The second comparison is for columns whose collation takes different texts for equal.
            'm.%1$I = (SELECT s.sub FROM %2$s) AND m.%1$I::text COLLATE "C" = (SELECT s.sub FROM %2$s)'
        ELSE 'm.%1$I::text COLLATE "C" = (SELECT s.sub FROM %2$s)' END, "column",
        '(SELECT coalesce(nullif(pg_catalog.current_setting(''request.jwt.claim.sub'', true), ''''), '
        'nullif(pg_catalog.current_setting(''request.jwt.claims'', true), '''')::jsonb ->> ''sub'')) AS s(sub)')
$$;

-- Let the members of an organization, and nobody else, receive what is broadcast on the private
-- topic PREFIX:ORGANIZATION. `membership` says who belongs where. Nobody gets the right to send.
-- Safe to run again. Returns the policy's name.
CREATE FUNCTION outbox.install_realtime_policies(topic_prefix text, membership regclass, user_column name, org_column name)
RETURNS text
LANGUAGE plpgsql SET search_path = '' AS $$
#variable_conflict use_variable
DECLARE
    prefix text := pg_catalog.regexp_replace(topic_prefix, ':$', '');
    policy text := 'outbox_' || prefix;
    missing name;
    user_type oid;
BEGIN
    IF prefix IS NULL OR membership IS NULL OR user_column IS NULL OR org_column IS NULL THEN
        RAISE EXCEPTION 'outbox: prefix, membership table, user column and organization column must all be given'
            USING ERRCODE = 'invalid_parameter_value';
    -- A colon inside would let two prefixes share topics: a:b + c = a + b:c.
    ELSIF prefix !~ '^[A-Za-z0-9_.-]{1,56}$' THEN
        RAISE EXCEPTION 'outbox: a topic prefix is 1 to 56 letters, digits, "_", "." or "-", such as orders, for topics orders:ORGANIZATION'
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF pg_catalog.to_regclass('realtime.messages') IS NULL THEN
        RAISE EXCEPTION 'outbox: there is no table realtime.messages; on Supabase enable Realtime, elsewhere run: SELECT outbox.install_realtime_shim()'
            USING ERRCODE = 'undefined_table';
    END IF;
    SELECT c.name INTO missing FROM pg_catalog.unnest(ARRAY[user_column, org_column]) AS c(name)
    WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                      WHERE a.attrelid = membership AND a.attname = c.name AND a.attnum > 0 AND NOT a.attisdropped);
    IF FOUND THEN
        RAISE EXCEPTION 'outbox: % has no column %', membership, missing USING ERRCODE = 'undefined_column';
    END IF;
    PERFORM outbox.realtime_check_membership(membership, user_column, org_column);
    SELECT a.atttypid INTO user_type FROM pg_catalog.pg_attribute a WHERE a.attrelid = membership AND a.attname = user_column;
    IF EXISTS (SELECT FROM pg_catalog.pg_policy p
               WHERE p.polrelid = 'realtime.messages'::regclass AND p.polname = policy) THEN
        EXECUTE pg_catalog.format('DROP POLICY %I ON realtime.messages', policy);
    END IF;
    -- The row's own topic is tested twice: without that, whoever may set realtime.topic in a session
    -- of his own could read the rows of every topic.
    EXECUTE pg_catalog.format($policy$
        CREATE POLICY %I ON realtime.messages FOR SELECT TO authenticated USING (
            messages.extension = 'broadcast'
            AND messages.topic = (SELECT realtime.topic())
            AND EXISTS (SELECT FROM %s AS m
                        WHERE %s AND m.%I::text <> ''
                          AND messages.topic = (%L || m.%I::text) COLLATE "C"))
        $policy$, policy, membership, outbox.realtime_same_user(user_type, user_column), org_column, prefix || ':', org_column);
    INSERT INTO outbox.realtime_policy AS p (topic_prefix, membership, user_column, org_column)
    SELECT prefix, pg_catalog.format('%I.%I', n.nspname, c.relname), user_column, org_column
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = membership
    ON CONFLICT ON CONSTRAINT realtime_policy_pkey DO UPDATE
        SET membership = excluded.membership, user_column = excluded.user_column, org_column = excluded.org_column;
    RETURN policy;
END
$$;

-- A policy asks the membership table as the client's role. That role must be able to read it, and
-- must not be able to write itself into it.
CREATE FUNCTION outbox.realtime_check_membership(membership regclass, user_column name, org_column name) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    v_schema name;
    v_secured boolean;
BEGIN
    SELECT n.nspname, c.relrowsecurity INTO v_schema, v_secured
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = membership;
    IF NOT pg_catalog.has_schema_privilege('authenticated', v_schema, 'USAGE') THEN
        RAISE EXCEPTION 'outbox: the role authenticated may not use the schema of %; run: GRANT USAGE ON SCHEMA % TO authenticated',
            membership, pg_catalog.quote_ident(v_schema) USING ERRCODE = 'insufficient_privilege';
    ELSIF NOT (pg_catalog.has_column_privilege('authenticated', membership, user_column, 'SELECT')
               AND pg_catalog.has_column_privilege('authenticated', membership, org_column, 'SELECT')) THEN
        RAISE EXCEPTION 'outbox: the role authenticated may not read %, which the policy asks; run: GRANT SELECT (%, %) ON % TO authenticated',
            membership, pg_catalog.quote_ident(user_column), pg_catalog.quote_ident(org_column), membership
            USING ERRCODE = 'insufficient_privilege';
    ELSIF NOT v_secured AND pg_catalog.has_any_column_privilege('authenticated', membership, 'INSERT, UPDATE') THEN
        RAISE EXCEPTION 'outbox: the role authenticated may write %, so that anybody could join any organization; '
            'run: ALTER TABLE % ENABLE ROW LEVEL SECURITY, with a policy that lets users read their own rows', membership, membership
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;

-- -- the stand-in --------------------------------------------------------------------------------

-- Days that the stand-in keeps partitions for, in UTC, as Supabase's server does: yesterday to three
-- days ahead; what is older than 72 hours goes. The stand-in server calls it.
CREATE FUNCTION outbox.keep_realtime_partitions(now timestamptz DEFAULT clock_timestamp()) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
#variable_conflict use_variable
DECLARE
    today date := (now AT TIME ZONE 'UTC')::date;
    day date;
    name text;
BEGIN
    IF NOT outbox.realtime_shim_stands() THEN
        RAISE EXCEPTION 'outbox: the schema realtime is not the stand-in' USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM pg_catalog.pg_advisory_xact_lock(78610002);
    FOR day IN SELECT pg_catalog.generate_series(today - 1, today + 3, interval '1 day')::date LOOP
        name := 'messages_' || pg_catalog.to_char(day, 'YYYY_MM_DD');
        IF pg_catalog.to_regclass('realtime.' || name) IS NULL THEN
            EXECUTE pg_catalog.format('CREATE TABLE realtime.%I PARTITION OF realtime.messages FOR VALUES FROM (%L) TO (%L)',
                name, day, day + 1);
        END IF;
    END LOOP;
    FOR name IN
        SELECT c.relname FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'realtime.messages'::regclass AND c.relname ~ '^messages_\d{4}_\d\d_\d\d$'
          AND pg_catalog.to_date(pg_catalog.right(c.relname, 10), 'YYYY_MM_DD') < ((now - interval '72 hours') AT TIME ZONE 'UTC')::date
    LOOP
        EXECUTE pg_catalog.format('DROP TABLE realtime.%I', name);
    END LOOP;
END
$$;

-- The roles a client's token may name. Those made here are marked, so that uninstall knows them.
CREATE FUNCTION outbox.make_realtime_roles() RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    role name;
BEGIN
    FOREACH role IN ARRAY '{anon,authenticated,service_role}'::name[] LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.rolname = role);
        BEGIN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN NOINHERIT %s', role,
                CASE role WHEN 'service_role' THEN 'BYPASSRLS' ELSE '' END);
            EXECUTE pg_catalog.format('COMMENT ON ROLE %I IS %L', role, 'outbox: made by install_realtime_shim');
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- made for another database at this moment
        END;
    END LOOP;
    -- Who installs it, and runs the server, acts for these roles.
    IF NOT (SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname = current_user) THEN
        EXECUTE pg_catalog.format('GRANT anon, authenticated, service_role TO %I', current_user);
    END IF;
END
$$;

-- What policies written for Supabase call. Left alone where a schema `auth` is.
CREATE FUNCTION outbox.make_auth_shim() RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $install$
BEGIN
    IF pg_catalog.to_regnamespace('auth') IS NOT NULL THEN
        RETURN;
    END IF;
    CREATE SCHEMA auth;
    COMMENT ON SCHEMA auth IS 'outbox: a stand-in for the functions of Supabase Auth that policies call, for development';
    CREATE FUNCTION auth.jwt() RETURNS jsonb LANGUAGE sql STABLE SET search_path = '' AS $$
        SELECT nullif(pg_catalog.current_setting('request.jwt.claims', true), '')::jsonb
    $$;
    CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE SET search_path = '' AS $$
        SELECT coalesce(nullif(pg_catalog.current_setting('request.jwt.claim.sub', true), ''), auth.jwt() ->> 'sub')::uuid
    $$;
    CREATE FUNCTION auth.role() RETURNS text LANGUAGE sql STABLE SET search_path = '' AS $$
        SELECT coalesce(nullif(pg_catalog.current_setting('request.jwt.claim.role', true), ''), auth.jwt() ->> 'role')
    $$;
    GRANT USAGE ON SCHEMA auth TO anon, authenticated, service_role;
    GRANT EXECUTE ON FUNCTION auth.jwt(), auth.uid(), auth.role() TO PUBLIC;
END
$install$;

-- Install the schema `realtime` as applications and policies see it: the table, the functions that
-- send, the roles. For development and tests. Refuses where a schema `realtime` is that does not
-- carry our comment: that is Supabase's own, or somebody's. Run again, it renews the functions.
CREATE FUNCTION outbox.install_realtime_shim() RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $install$
BEGIN
    IF pg_catalog.to_regnamespace('realtime') IS NOT NULL AND NOT outbox.realtime_shim_stands() THEN
        RAISE EXCEPTION 'outbox: this database has a schema realtime that is not the stand-in (on Supabase it is the real one); nothing was installed'
            USING ERRCODE = 'duplicate_schema';
    END IF;
    PERFORM outbox.make_realtime_roles();
    PERFORM outbox.make_auth_shim();
    IF NOT outbox.realtime_shim_stands() THEN
        CREATE SCHEMA realtime;
        COMMENT ON SCHEMA realtime IS 'outbox: a stand-in for Supabase Realtime, for development';
        GRANT USAGE ON SCHEMA realtime TO anon, authenticated, service_role;
        CREATE TABLE realtime.messages (
            topic          text NOT NULL,
            extension      text NOT NULL,
            payload        jsonb,
            event          text,
            private        boolean DEFAULT false,
            updated_at     timestamp without time zone NOT NULL DEFAULT now(),
            inserted_at    timestamp without time zone NOT NULL DEFAULT now(),
            id             uuid NOT NULL DEFAULT gen_random_uuid(),
            binary_payload bytea,
            PRIMARY KEY (id, inserted_at),
            CONSTRAINT messages_one_payload CHECK (payload IS NULL OR binary_payload IS NULL)
        ) PARTITION BY RANGE (inserted_at);
        CREATE INDEX messages_inserted_at_topic_index ON realtime.messages (inserted_at DESC, topic)
            WHERE extension = 'broadcast' AND private IS TRUE;
        ALTER TABLE realtime.messages ENABLE ROW LEVEL SECURITY;
        GRANT SELECT, INSERT, UPDATE ON realtime.messages TO anon, authenticated, service_role;
    END IF;
    PERFORM outbox.make_realtime_functions();
    PERFORM outbox.keep_realtime_partitions();
END
$install$;

-- The functions of the stand-in: signatures, behaviour and texts are those of Supabase Realtime.
CREATE FUNCTION outbox.make_realtime_functions() RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $install$
BEGIN
    CREATE OR REPLACE FUNCTION realtime.topic() RETURNS text LANGUAGE sql STABLE AS $$
        SELECT nullif(pg_catalog.current_setting('realtime.topic', true), '')
    $$;

    -- Never raises: whatever goes wrong is a warning, and the message is lost.
    CREATE OR REPLACE FUNCTION realtime.send(payload jsonb, event text, topic text, private boolean DEFAULT true)
    RETURNS void LANGUAGE plpgsql AS $$
    DECLARE
        message_id uuid := pg_catalog.gen_random_uuid();
    BEGIN
        IF payload ? 'id' THEN
            NULL; -- the sender's own id stays
        ELSE
            payload := pg_catalog.jsonb_set(payload, '{id}', pg_catalog.to_jsonb(message_id::text));
        END IF;
        EXECUTE pg_catalog.format('SET LOCAL realtime.topic TO %L', topic);
        INSERT INTO realtime.messages (id, payload, event, topic, private, extension)
        VALUES (message_id, send.payload, send.event, send.topic, send.private, 'broadcast');
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'WarnSendingBroadcastMessage: %', SQLERRM;
    END
    $$;

    CREATE OR REPLACE FUNCTION realtime.send_binary(payload bytea, event text, topic text, private boolean DEFAULT true)
    RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        EXECUTE pg_catalog.format('SET LOCAL realtime.topic TO %L', topic);
        INSERT INTO realtime.messages (binary_payload, event, topic, private, extension)
        VALUES (send_binary.payload, send_binary.event, send_binary.topic, send_binary.private, 'broadcast');
    EXCEPTION WHEN OTHERS THEN
        RAISE WARNING 'WarnSendingBroadcastMessage: %', SQLERRM;
    END
    $$;

    -- For row triggers. Wrong arguments raise, and abort the write; a lost message only warns.
    CREATE OR REPLACE FUNCTION realtime.broadcast_changes(topic_name text, event_name text, operation text,
        table_name text, table_schema text, new record, old record, level text DEFAULT 'ROW')
    RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF level = 'STATEMENT' THEN
            RAISE EXCEPTION 'function can only be triggered for each row, not for each statement';
        ELSIF operation IS NULL OR operation NOT IN ('INSERT', 'UPDATE', 'DELETE') THEN
            RAISE EXCEPTION 'Unexpected operation type: %', operation;
        END IF;
        PERFORM realtime.send(pg_catalog.jsonb_build_object('old_record', old, 'record', new,
            'operation', operation, 'table', table_name, 'schema', table_schema), event_name, topic_name);
    EXCEPTION WHEN OTHERS THEN
        RAISE EXCEPTION 'Failed to process the row: %', SQLERRM;
    END
    $$;

    -- Tells the stand-in server which rows were committed: at commit, in order of commits. A cursor
    -- over transaction ids could not: send() writes in subtransactions, which snapshots do not list.
    CREATE OR REPLACE FUNCTION realtime.outbox_feed() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
    BEGIN
        PERFORM pg_catalog.pg_notify('outbox_realtime', ids) FROM (
            SELECT pg_catalog.string_agg(pg_catalog.replace(r.id::text, '-', ''), '' ORDER BY r.number) AS ids
            FROM (SELECT n.id, pg_catalog.row_number() OVER () AS number FROM inserted n) r
            -- A notification holds less than 8,000 bytes.
            GROUP BY (r.number - 1) / 240 ORDER BY (r.number - 1) / 240) chunks;
        RETURN NULL;
    END
    $$;
    CREATE OR REPLACE TRIGGER outbox_feed AFTER INSERT ON realtime.messages
        REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION realtime.outbox_feed();

    GRANT EXECUTE ON FUNCTION realtime.topic(), realtime.send(jsonb, text, text, boolean),
        realtime.send_binary(bytea, text, text, boolean),
        realtime.broadcast_changes(text, text, text, text, text, record, record, text) TO PUBLIC;
END
$install$;

-- -- removal -------------------------------------------------------------------------------------

-- Remove our policies and the stand-in; Supabase's own schema keeps everything that is not ours.
-- Returns what went, in words; with `dry` it only says so.
CREATE FUNCTION outbox.remove_realtime(dry boolean DEFAULT false) RETURNS SETOF text
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    policy name;
    role name;
BEGIN
    FOR policy IN
        SELECT p.polname FROM pg_catalog.pg_policy p JOIN outbox.realtime_policy o ON p.polname = 'outbox_' || o.topic_prefix
        WHERE p.polrelid = pg_catalog.to_regclass('realtime.messages') ORDER BY 1
    LOOP
        RETURN NEXT pg_catalog.format('the policy %I on realtime.messages', policy);
        IF NOT dry THEN
            EXECUTE pg_catalog.format('DROP POLICY %I ON realtime.messages', policy);
        END IF;
    END LOOP;
    IF NOT dry THEN
        DELETE FROM outbox.realtime_policy;
    END IF;
    IF outbox.realtime_shim_stands() THEN
        RETURN NEXT 'the stand-in schema realtime with its messages';
        IF NOT dry THEN
            DROP SCHEMA realtime CASCADE;
        END IF;
    END IF;
    IF pg_catalog.starts_with(pg_catalog.obj_description(pg_catalog.to_regnamespace('auth')::oid, 'pg_namespace'), 'outbox: ') THEN
        RETURN NEXT 'the stand-in schema auth';
        IF NOT dry THEN
            DROP FUNCTION auth.role(), auth.uid(), auth.jwt();
            DROP SCHEMA auth;
        END IF;
    END IF;
END
$$;

GRANT SELECT ON outbox.realtime_policy TO outbox_daemon, outbox_reader;
DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN SELECT p.oid::regprocedure FROM pg_proc p WHERE p.pronamespace = 'outbox'::regnamespace
        AND (p.proname ~ 'realtime' OR p.proname = 'make_auth_shim') LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
    END LOOP;
END
$$;
