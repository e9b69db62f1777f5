-- Capture: triggers on the user's tables that write each change into the log.
-- compatible-from: 1
--
-- `outbox.watch` generates trigger functions with a table's constants inlined and keeps its options
-- as a comment on them: there is no catalogue of our own that could disagree with the triggers.
-- The generated code runs as outbox_owner, for whoever writes to the table. It qualifies every type:
-- an empty search_path still looks for types among the caller's temporary ones first.
-- It converts in blocks that catch and do not write, so that no subtransaction id is ever drawn.

-- The functions that capture the changes of a table.
CREATE FUNCTION outbox.capture_functions(relation oid) RETURNS SETOF oid
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT DISTINCT p.oid FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
    WHERE t.tgrelid = relation AND p.pronamespace = 'outbox'::regnamespace AND p.proname ~ '^capture_[0-9]+_[a-z]+$'
$$;

-- Types among the columns of a table whose conversion to JSON would run somebody's own code: those
-- with a cast to json or jsonb. Casts written in C are an administrator's (hstore, PostGIS).
CREATE FUNCTION outbox.capture_unsafe_types(relation oid) RETURNS SETOF text
LANGUAGE sql STABLE SET search_path = '' AS $$
    WITH RECURSIVE t(oid) AS (
        SELECT atttypid FROM pg_catalog.pg_attribute WHERE attrelid = relation AND attnum > 0 AND NOT attisdropped
        UNION
        SELECT inner_type FROM t JOIN pg_catalog.pg_type y ON y.oid = t.oid, LATERAL (
            SELECT y.typelem UNION SELECT y.typbasetype
            UNION SELECT a.atttypid FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = y.typrelid AND y.typrelid <> 0 AND a.attnum > 0 AND NOT a.attisdropped
            UNION SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE y.oid IN (r.rngtypid, r.rngmultitypid)
        ) AS inner_types(inner_type) WHERE inner_type <> 0
    )
    SELECT DISTINCT pg_catalog.format_type(t.oid, NULL) FROM t
    JOIN pg_catalog.pg_cast c ON c.castsource = t.oid
    LEFT JOIN pg_catalog.pg_proc p ON p.oid = c.castfunc
    LEFT JOIN pg_catalog.pg_language l ON l.oid = p.prolang
    WHERE c.oid >= 16384 AND c.casttarget IN ('json'::regtype, 'jsonb'::regtype)
      AND coalesce(l.lanname, '') NOT IN ('c', 'internal')
$$;

-- The columns of `row` that are kept, as JSON, one by one: for values that json_each cannot read
-- (a \u0000 in a json column). Columns that cannot be converted raise.
CREATE FUNCTION outbox.kept_slowly("row" anyelement, names text[], keep boolean) RETURNS json
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    name text;
    value text;
    parts text[] := '{}';
BEGIN
    FOR name IN SELECT a.attname FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type y ON y.typrelid = a.attrelid
        WHERE y.oid = pg_catalog.pg_typeof("row") AND a.attnum > 0 AND NOT a.attisdropped
          AND (a.attname = ANY (names)) = keep ORDER BY a.attnum LOOP
        EXECUTE pg_catalog.format('SELECT pg_catalog.to_json(($1).%I)', name) INTO value USING "row";
        parts := parts || (pg_catalog.to_json(name)::pg_catalog.text || ':' || coalesce(value, 'null'));
    END LOOP;
    RETURN ('{' || pg_catalog.array_to_string(parts, ',') || '}')::pg_catalog.json;
END
$$;

-- The kept columns in which two rows differ, by their stored image: needs no conversion.
CREATE FUNCTION outbox.changed_slowly(was anyelement, now anyelement, names text[], keep boolean) RETURNS json
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    name text;
    differs boolean;
    changed text[] := '{}';
BEGIN
    FOR name IN SELECT a.attname FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type y ON y.typrelid = a.attrelid
        WHERE y.oid = pg_catalog.pg_typeof(now) AND a.attnum > 0 AND NOT a.attisdropped
          AND (a.attname = ANY (names)) = keep ORDER BY a.attnum LOOP
        EXECUTE pg_catalog.format('SELECT pg_catalog.record_image_ne(ROW(($1).%1$I), ROW(($2).%1$I))', name)
            INTO differs USING was, now;
        IF differs THEN
            changed := changed || name;
        END IF;
    END LOOP;
    RETURN pg_catalog.array_to_json(changed);
END
$$;

-- A template with its @marks@ replaced in one pass, so that no value is read as a mark.
CREATE FUNCTION outbox.capture_fill(template text, parts jsonb) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT pg_catalog.string_agg(CASE WHEN i % 2 = 1 THEN piece ELSE parts ->> piece END, '' ORDER BY i)
    FROM pg_catalog.regexp_split_to_table(template, '@') WITH ORDINALITY AS x(piece, i)
$$;

-- The SQL that turns a column of `side` (NEW, OLD or r) into text, as JSON would show it. Types of
-- users never go through a cast: a cast to text may be somebody's own function.
CREATE FUNCTION outbox.capture_text(relation oid, side text, name text) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT pg_catalog.format(CASE
        WHEN a.atttypid IN ('text'::regtype, 'varchar'::regtype, 'int2'::regtype, 'int4'::regtype,
                            'int8'::regtype, 'uuid'::regtype)
        THEN '%s.%I::pg_catalog.text' ELSE '(pg_catalog.to_json(%s.%I) #>> ''{}'')' END, side, name)
    FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = name AND a.attnum > 0 AND NOT a.attisdropped
$$;

-- The generated pieces of one side (NEW or OLD), under names that begin with new_ or old_: SQL for
-- organization, subject and key; statements that set _new or _old, and careful ones for when those fail.
CREATE FUNCTION outbox.capture_side(relation oid, o jsonb, side text) RETURNS jsonb
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    name text;
    part text;
    subject text := pg_catalog.quote_literal(o ->> 'prefix');
    key text := '';
    names text[] := ARRAY(SELECT pg_catalog.jsonb_array_elements_text(o -> 'names'));
    keep boolean := o ->> 'keep';
    blank text;
    parts jsonb;
    p text := pg_catalog.lower(side) || '_';
BEGIN
    FOR name IN SELECT pg_catalog.jsonb_array_elements_text(o -> 'subject') LOOP
        part := outbox.capture_text(relation, side, name);
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attname = name
                       AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype, 'uuid'::regtype)) THEN
            part := 'pg_catalog.replace(pg_catalog.replace(' || part || ', ''%'', ''%25''), ''/'', ''%2F'')';
        END IF;
        subject := subject || ' || ''/'' || ' || part;
        key := key || pg_catalog.format(' || %L || coalesce(pg_catalog.to_json(%s.%I)::pg_catalog.text, ''null'')',
                                        CASE key WHEN '' THEN '{' ELSE ',' END || pg_catalog.to_json(name) || ':', side, name);
    END LOOP;
    SELECT coalesce(pg_catalog.string_agg(pg_catalog.format(' _row.%I := NULL;', a.attname), ''), '') INTO blank
    FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
      AND (a.attname = ANY (names)) <> keep AND a.attgenerated = '';
    parts := pg_catalog.jsonb_build_object('side', side, 'var', '_' || pg_catalog.lower(side), 'blank', blank,
        'names', pg_catalog.quote_literal(names) || '::pg_catalog.text[]', 'keep', keep,
        'limit', outbox.payload_bytes_max());
    RETURN pg_catalog.jsonb_build_object(
        p || 'org', CASE WHEN o ->> 'org' IS NULL THEN 'NULL::pg_catalog.text'
            ELSE 'nullif(' || outbox.capture_text(relation, side, o ->> 'org') || ', '''')' END,
        p || 'subject', CASE WHEN key = '' THEN 'NULL::pg_catalog.text' ELSE subject END,
        p || 'key', CASE WHEN key = '' THEN 'NULL::pg_catalog.json'
            ELSE '(' || pg_catalog.substr(key, 5) || ' || ''}'')::pg_catalog.json' END,
        p || 'convert', outbox.capture_fill(CASE WHEN (o ->> 'filtered')::boolean THEN $t$_row := @side@;@blank@
        @var@ := CASE WHEN pg_catalog.pg_column_size(_row) <= @limit@ THEN (
            SELECT ('{' || coalesce(pg_catalog.string_agg(pg_catalog.to_json(k.key)::pg_catalog.text || ':' || k.value::pg_catalog.text, ','), '') || '}')::pg_catalog.json
            FROM pg_catalog.json_each(pg_catalog.row_to_json(_row)) k WHERE (k.key = ANY (@names@)) = @keep@) END;$t$
            ELSE '@var@ := CASE WHEN pg_catalog.pg_column_size(@side@) <= @limit@ THEN pg_catalog.row_to_json(@side@) END;' END, parts),
        p || 'again', outbox.capture_fill(CASE WHEN (o ->> 'filtered')::boolean
            THEN '@var@ := CASE WHEN pg_catalog.pg_column_size(@side@) <= @limit@ THEN outbox.kept_slowly(@side@, @names@, @keep@) END;'
            ELSE '@var@ := CASE WHEN pg_catalog.pg_column_size(@side@) <= @limit@ THEN pg_catalog.row_to_json(@side@) END;' END, parts));
END
$$;

-- The payload of an event as generated code that yields text; the parts are SQL, NULL for none.
-- Concatenation is compact and takes half the time of json_build_object.
CREATE FUNCTION outbox.capture_payload(o jsonb, operation text, record text, old_record text, changed text, marker boolean DEFAULT false)
RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT pg_catalog.string_agg(CASE
            WHEN part IS NULL OR part = 'NULL' THEN pg_catalog.quote_literal(label || 'null')
            ELSE pg_catalog.quote_literal(label) || ' || coalesce((' || part || ')::pg_catalog.text, ''null'')' END, ' || ' ORDER BY i)
        || ' || ''}'''
    FROM (VALUES
        (1, pg_catalog.concat('{"operation":"', operation, '","schema":', pg_catalog.to_json(o ->> 'schema'),
                              ',"table":', pg_catalog.to_json(o ->> 'table'), ',"record":'), record),
        (2, ',"old_record":', old_record),
        (3, ',"changed":', changed),
        (4, ',"omitted":', 'pg_catalog.to_json(_omitted)'),
        (5, ',"key":', '_key')) AS x(i, label, part)
    WHERE marker OR i < 4
$$;

-- One event into the log, as generated code: organization, subject and payload are SQL. The bell is
-- read in the same statement: the transaction has its id by then, so that a relay about to sleep waits for it.
CREATE FUNCTION outbox.capture_write(type text, org text, subject text, payload text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = '' AS $$
    SELECT outbox.capture_fill($t$
    _id := pg_catalog.nextval('outbox.event_id'::pg_catalog.regclass);
    _slot := (SELECT s.last_value FROM outbox.ring_slot s);
    WITH i AS (
        INSERT INTO outbox.event (id, slot, type, org_id, subject, payload, created_at)
        VALUES (_id, _slot, @type@, @org@, @subject@, (@payload@)::pg_catalog.json, pg_catalog.clock_timestamp())
    )
    INSERT INTO outbox.pending (id, slot, org) VALUES (_id, _slot, coalesce(@org@, ''))
    RETURNING (SELECT b.last_value FROM outbox.bell b) INTO _bell;$t$,
        pg_catalog.jsonb_build_object('type', pg_catalog.quote_literal(type), 'payload', payload, 'org', org, 'subject', subject))
$$;

-- The test of a condition on one side, as generated code: what cannot be judged is captured.
CREATE FUNCTION outbox.capture_condition(relation oid, condition text, side text) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    -- Only columns that the condition may name, so that the loss of another changes nothing.
    SELECT coalesce($t$
    BEGIN
        _pass := (SELECT ($t$ || condition || E'\n) FROM (SELECT ' || coalesce((
            SELECT pg_catalog.string_agg(pg_catalog.format('%s.%2$I AS %2$I', side, a.attname), ', ')
            FROM pg_catalog.pg_attribute a WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped
              AND pg_catalog.strpos(pg_catalog.lower(condition), pg_catalog.lower(a.attname)) > 0), '') || $t$) AS _columns);
    EXCEPTION
        WHEN transaction_rollback THEN RAISE;
        -- A column's type has changed in this session: planned anew it may work.
        WHEN datatype_mismatch THEN
            BEGIN
                EXECUTE $t$ || pg_catalog.quote_literal(pg_catalog.format(
                    E'SELECT (SELECT (%s\n) FROM (SELECT "%s".*) AS _columns) FROM (SELECT ($1).*) AS "new", (SELECT ($2).*) AS "old"',
                    condition, pg_catalog.lower(side))) || $t$ INTO _pass USING NEW, OLD;
            EXCEPTION
                WHEN transaction_rollback THEN RAISE;
                WHEN OTHERS THEN _pass := true;
            END;
        WHEN OTHERS THEN _pass := true;
    END;$t$, '')
$$;

-- The code of a row-level trigger function for insert, update or delete.
CREATE FUNCTION outbox.capture_row_body(kind text, done text, relation oid, o jsonb) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    prefix text := o ->> 'prefix';
    keep_old boolean := o ->> 'old';
    parts jsonb := outbox.capture_side(relation, o, 'NEW') || outbox.capture_side(relation, o, 'OLD');
    operation text := pg_catalog.upper(kind);
    old_record text := CASE WHEN keep_old THEN '_old' ELSE 'NULL' END;
    -- A session keeps the plan of NEW.column, which fails once the column's type has changed; a
    -- dynamic statement is planned anew. It needs a row of a named type, as row-level triggers have.
    fresh jsonb := outbox.capture_side(relation, o, '($1)');
    side text := CASE kind WHEN 'delete' THEN 'OLD' ELSE 'NEW' END;
    by_statement boolean := done = 'CONTINUE';
BEGIN
    fresh := pg_catalog.jsonb_build_object('org', fresh -> '($1)_org', 'subject', fresh -> '($1)_subject', 'key', fresh -> '($1)_key');
    IF kind = 'delete' AND NOT keep_old THEN
        parts := parts || pg_catalog.jsonb_build_object('old_convert', '_old := ' || (parts ->> 'old_key') || ';',
                                                        'old_again', '_old := ' || (parts ->> 'old_key') || ';');
    END IF;
    -- What differs between the kinds.
    parts := parts || pg_catalog.jsonb_build_object(
        'limit', outbox.payload_bytes_max(),
        'condition', outbox.capture_condition(relation, o ->> 'condition', CASE kind WHEN 'delete' THEN 'OLD' ELSE 'NEW' END),
        'org', parts ->> CASE kind WHEN 'delete' THEN 'old_org' ELSE 'new_org' END,
        'subject', parts ->> CASE kind WHEN 'delete' THEN 'old_subject' ELSE 'new_subject' END,
        'key', parts ->> CASE kind WHEN 'delete' THEN 'old_key' ELSE 'new_key' END,
        'was_org', CASE WHEN kind = 'update' THEN '_was_org := ' || (parts ->> 'old_org') || ';' ELSE '' END,
        'convert', CASE kind WHEN 'insert' THEN parts ->> 'new_convert' WHEN 'delete' THEN parts ->> 'old_convert'
            ELSE pg_catalog.concat(parts ->> 'new_convert', E'\n        ', parts ->> 'old_convert', $t$
        _changed := (SELECT pg_catalog.json_agg(z.nk) FROM ROWS FROM (pg_catalog.json_each(_old), pg_catalog.json_each(_new)) AS z(ok, ov, nk, nv)
                     WHERE z.ov::pg_catalog.text <> z.nv::pg_catalog.text);$t$) END,
        'again', CASE kind WHEN 'insert' THEN parts ->> 'new_again' WHEN 'delete' THEN parts ->> 'old_again'
            ELSE pg_catalog.concat(parts ->> 'new_again', E'\n            ', parts ->> 'old_again') END,
        'changed_again', CASE WHEN kind = 'update' THEN outbox.capture_fill($t$
        BEGIN
            _changed := outbox.changed_slowly(OLD, NEW, @names@, @keep@);
        EXCEPTION
            WHEN transaction_rollback THEN RAISE;
            WHEN OTHERS THEN NULL;
        END;
        IF _changed::pg_catalog.text = '[]' AND NOT (@moved@) THEN
            RETURN NULL;
        END IF;$t$, pg_catalog.jsonb_build_object('moved', CASE WHEN o ->> 'org' IS NOT NULL THEN '_org IS DISTINCT FROM _was_org' ELSE 'false' END,
            'keep', o -> 'keep', 'names', pg_catalog.quote_literal(
                ARRAY(SELECT pg_catalog.jsonb_array_elements_text(o -> 'names'))) || '::pg_catalog.text[]')) ELSE '' END,
        'missing', pg_catalog.replace(pg_catalog.format(CASE kind WHEN 'insert' THEN '%s' WHEN 'delete' THEN '%2$s' ELSE '%s OR %s' END,
            'coalesce(pg_catalog.octet_length(_new::pg_catalog.text), @) > @',
            CASE WHEN kind = 'delete' AND NOT keep_old THEN 'false'
                 ELSE 'coalesce(pg_catalog.octet_length(_old::pg_catalog.text), @) > @' END), '@) > @',
            outbox.payload_bytes_max() + 1 || ') > ' || outbox.payload_bytes_max()),
        'payload', CASE kind
            WHEN 'insert' THEN outbox.capture_payload(o, operation, '_new', 'NULL', 'NULL')
            WHEN 'delete' THEN outbox.capture_payload(o, operation, 'NULL', '_old', 'NULL')
            ELSE outbox.capture_payload(o, operation, '_new', old_record, '_changed') END,
        'marker', outbox.capture_payload(o, operation, 'NULL', 'NULL', '_changed', true),
        'inserted', outbox.capture_payload(o, 'INSERT', '_new', 'NULL', 'NULL'),
        'inserted_marker', outbox.capture_payload(o, 'INSERT', 'NULL', 'NULL', 'NULL', true),
        'moved', CASE WHEN kind = 'update' AND o ->> 'org' IS NOT NULL THEN '_org IS DISTINCT FROM _was_org' ELSE 'false' END,
        'unchanged', CASE WHEN kind = 'update' THEN '_changed IS NULL' ELSE 'false' END,
        'write', outbox.capture_write(prefix || CASE kind WHEN 'insert' THEN '.inserted' WHEN 'delete' THEN '.deleted' ELSE '.updated' END,
                                      '_org', '_subject', '_payload'),
        'org_error', pg_catalog.quote_literal(pg_catalog.format(
            'outbox: organization column %s of table %s is gone: run outbox watch again, or outbox unwatch',
            pg_catalog.quote_ident(coalesce(o ->> 'org', '')), relation::regclass)));
    parts := parts || CASE WHEN by_statement THEN pg_catalog.jsonb_build_object(
            'again_org', '_org := ' || (parts ->> 'org') || ';', 'again_subject', '_subject := ' || (parts ->> 'subject') || ';',
            'again_key', '_key := ' || (parts ->> 'key') || ';')
        ELSE pg_catalog.jsonb_build_object(
            'again_org', pg_catalog.format('EXECUTE %L INTO _org USING %s;', 'SELECT ' || (fresh ->> 'org'), side)
                || CASE WHEN kind = 'update' THEN pg_catalog.format(' EXECUTE %L INTO _was_org USING OLD;', 'SELECT ' || (fresh ->> 'org')) ELSE '' END,
            'again_subject', pg_catalog.format('EXECUTE %L INTO _subject USING %s;', 'SELECT ' || (fresh ->> 'subject'), side),
            'again_key', pg_catalog.format('EXECUTE %L INTO _key USING %s;', 'SELECT ' || (fresh ->> 'key'), side),
            'again_was', pg_catalog.format('EXECUTE %L INTO _was_subject, _old USING OLD;',
                                           'SELECT ' || (fresh ->> 'subject') || ', ' || (fresh ->> 'key'))) END;
    parts := parts || pg_catalog.jsonb_build_object('done', done, 'write_move', CASE WHEN kind = 'update' AND o ->> 'org' IS NOT NULL THEN outbox.capture_fill($t$
    IF @moved@ THEN
        -- The old organization learns the id alone, the new one nothing of what was before.
        BEGIN
            @again_was@
        EXCEPTION
            WHEN transaction_rollback THEN RAISE;
            WHEN OTHERS THEN _old := NULL;
        END;
        IF pg_catalog.length(_was_org) > 200 THEN
            _was_org := 'sha256:' || pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(_was_org, 'UTF8')), 'hex');
        END IF;
        @write_deleted@
        @write_inserted@
    ELSE$t$, parts || pg_catalog.jsonb_build_object(
            'write_deleted', outbox.capture_write(prefix || '.deleted', '_was_org', '_was_subject',
                outbox.capture_payload(o, 'DELETE', 'NULL', '_old', 'NULL')),
            'write_inserted', outbox.capture_write(prefix || '.inserted', '_org', '_subject', '_payload'))) ELSE '' END,
        'end_move', CASE WHEN kind = 'update' AND o ->> 'org' IS NOT NULL THEN E'\n    END IF;' ELSE '' END);
    RETURN outbox.capture_fill($t$@condition@
    IF _pass IS NOT TRUE THEN
        @done@;
    END IF;
    BEGIN
        _org := @org@;
        @was_org@
        @convert@
        _subject := @subject@;
    EXCEPTION
        WHEN transaction_rollback THEN RAISE;
        WHEN OTHERS THEN _failed := true;
    END;
    IF NOT _failed THEN
        IF @missing@ THEN
            _omitted := 'too_large';@changed_again@
        ELSIF @unchanged@ AND NOT (@moved@) THEN
            @done@;
        END IF;
    ELSE
        -- Something failed: one by one, and only a missing organization may fail the write.
        BEGIN
            @again_org@
        EXCEPTION
            WHEN undefined_column THEN
                RAISE EXCEPTION USING MESSAGE = @org_error@, ERRCODE = 'undefined_column';
        END;
        BEGIN
            @again@
            IF @missing@ THEN
                _omitted := 'too_large';
            END IF;
        EXCEPTION
            WHEN transaction_rollback THEN RAISE;
            WHEN OTHERS THEN _omitted := 'unconvertible';
        END;
        BEGIN
            @again_subject@
        EXCEPTION
            WHEN transaction_rollback THEN RAISE;
            WHEN OTHERS THEN NULL;
        END;@changed_again@
    END IF;
    IF pg_catalog.length(_org) > 200 THEN
        _org := 'sha256:' || pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(_org, 'UTF8')), 'hex');
    END IF;
    IF _omitted IS NULL THEN
        IF @moved@ THEN
            _payload := @inserted@;
        ELSE
            _payload := @payload@;
        END IF;
        IF pg_catalog.octet_length(_payload) > @limit@ THEN
            _omitted := 'too_large';
        END IF;
    END IF;
    IF _omitted IS NOT NULL THEN
        BEGIN
            @again_key@
        EXCEPTION
            WHEN transaction_rollback THEN RAISE;
            WHEN OTHERS THEN NULL;
        END;
        IF @moved@ THEN
            _payload := @inserted_marker@;
        ELSE
            _payload := @marker@;
        END IF;
    END IF;@write_move@@write@@end_move@
$t$, parts);
END
$$;

-- The code that captures all inserted or deleted rows of a statement at once. It judges first, in a
-- block that writes nothing: a row of 16 kB cannot fail to convert, whatever its types.
CREATE FUNCTION outbox.capture_set_body(kind text, relation oid, o jsonb) RETURNS text
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    parts jsonb := outbox.capture_side(relation, o, '_r');
    record text := CASE WHEN kind = 'delete' AND NOT (o ->> 'old')::boolean THEN parts ->> '_r_key' ELSE 'pg_catalog.row_to_json(_r.*)' END;
BEGIN
    RETURN outbox.capture_fill($t$
    BEGIN
        _pass := (SELECT pg_catalog.bool_and(pg_catalog.pg_column_size(_r.*) <= 16384
                      AND coalesce(pg_catalog.length(@_r_org@), 0) <= 200 AND coalesce(pg_catalog.length(@_r_subject@), 0) <= 2000)
                  FROM _rows _r);
    EXCEPTION
        WHEN transaction_rollback THEN RAISE;
        WHEN OTHERS THEN _pass := false;
    END;
    IF _pass THEN
        WITH e AS MATERIALIZED (
            SELECT pg_catalog.nextval('outbox.event_id'::pg_catalog.regclass) AS id, s.last_value::smallint AS slot,
                   @_r_org@ AS org, @_r_subject@ AS subject,
                   CASE WHEN pg_catalog.octet_length(p.payload) <= @limit@ THEN p.payload ELSE @marker@ END AS payload
            FROM outbox.ring_slot s, _rows _r, LATERAL (SELECT @payload@ AS payload OFFSET 0) AS p
        ), i AS (
            INSERT INTO outbox.event (id, slot, type, org_id, subject, payload, created_at)
            SELECT e.id, e.slot, @type@, e.org, e.subject, e.payload::pg_catalog.json, pg_catalog.clock_timestamp() FROM e
        )
        INSERT INTO outbox.pending (id, slot, org) SELECT e.id, e.slot, coalesce(e.org, '') FROM e;
        _bell := (SELECT b.last_value FROM outbox.bell b);
    ELSE
        FOR @side@ IN SELECT _r.* FROM _rows _r LOOP
            _pass := true;
            _failed := false;
            _omitted := NULL;@row@
        END LOOP;
    END IF;$t$, parts || pg_catalog.jsonb_build_object(
        'limit', outbox.payload_bytes_max(),
        'type', pg_catalog.quote_literal((o ->> 'prefix') || CASE kind WHEN 'insert' THEN '.inserted' ELSE '.deleted' END),
        'marker', pg_catalog.replace(pg_catalog.replace(
            outbox.capture_payload(o, pg_catalog.upper(kind), 'NULL', 'NULL', 'NULL', true),
            'pg_catalog.to_json(_omitted)', '''"too_large"'''), '(_key)', '(' || (parts ->> '_r_key') || ')'),
        'payload', CASE kind WHEN 'insert' THEN outbox.capture_payload(o, 'INSERT', record, 'NULL', 'NULL')
            ELSE outbox.capture_payload(o, 'DELETE', 'NULL', record, 'NULL') END,
        'side', CASE kind WHEN 'insert' THEN 'NEW' ELSE 'OLD' END,
        'row', outbox.capture_row_body(kind, 'CONTINUE', relation, o)));
END
$$;

-- A trigger function that captures one row after the other: at row level, or over all rows of a
-- statement where the set-based code will not do.
CREATE FUNCTION outbox.capture_body(kind text, statement_level boolean, relation oid, o jsonb) RETURNS text
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT outbox.capture_fill($t$
DECLARE
    _id bigint;
    _slot smallint;
    _bell bigint;
    _org pg_catalog.text;
    _was_org pg_catalog.text;
    _subject pg_catalog.text;
    _was_subject pg_catalog.text;
    _row pg_catalog.record;
    _new pg_catalog.json;
    _old pg_catalog.json;
    _key pg_catalog.json;
    _changed pg_catalog.json;
    _payload pg_catalog.text;
    _omitted pg_catalog.text;
    _pass boolean := true;
    _failed boolean := false;
BEGIN@rows@
    IF _bell = 2 THEN
        PERFORM pg_catalog.pg_notify('outbox', '');
    END IF;
    RETURN NULL;
END
$t$, pg_catalog.jsonb_build_object('rows', CASE
        WHEN kind = 'truncate' THEN outbox.capture_write((o ->> 'prefix') || '.truncated', 'NULL', 'NULL',
            outbox.capture_payload(o, 'TRUNCATE', 'NULL', 'NULL', 'NULL'))
        WHEN statement_level THEN outbox.capture_set_body(kind, relation, o)
        ELSE outbox.capture_row_body(kind, 'RETURN NULL', relation, o) END))
$$;

-- Refuse what cannot be watched, with one clear line each.
CREATE FUNCTION outbox.capture_check(relation oid, o jsonb) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
DECLARE
    c pg_catalog.pg_class;
    shown text := relation::regclass;
    space text;
    bad text;
BEGIN
    SELECT * INTO STRICT c FROM pg_catalog.pg_class WHERE oid = relation;
    SELECT nspname INTO STRICT space FROM pg_catalog.pg_namespace WHERE oid = c.relnamespace;
    IF c.relkind NOT IN ('r', 'p') THEN
        RAISE EXCEPTION 'outbox: % is not a table; only tables and partitioned tables can be watched', shown
            USING ERRCODE = 'wrong_object_type';
    ELSIF space IN ('outbox', 'pg_catalog', 'information_schema', 'pg_toast') OR c.relpersistence = 't' THEN
        RAISE EXCEPTION 'outbox: % is a temporary, system or outbox table and cannot be watched', shown
            USING ERRCODE = 'wrong_object_type';
    ELSIF NOT pg_catalog.pg_has_role(c.relowner, 'USAGE') THEN
        RAISE EXCEPTION 'outbox: only the owner of % (role %) may watch it', shown, c.relowner::regrole
            USING ERRCODE = 'insufficient_privilege';
    ELSIF NOT pg_catalog.pg_has_role('outbox_owner', 'USAGE')
        OR NOT pg_catalog.pg_has_role((SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = 'outbox'), 'USAGE') THEN
        RAISE EXCEPTION 'outbox: to watch tables a role must be a member of outbox_owner and of the owner of schema outbox'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    SELECT t.tgname INTO bad FROM pg_catalog.pg_trigger t
    WHERE t.tgrelid = relation AND t.tgparentid <> 0 AND t.tgfoid IN (SELECT outbox.capture_functions(relation));
    IF FOUND THEN
        RAISE EXCEPTION 'outbox: % is a partition of a table that is watched already', shown USING ERRCODE = 'object_in_use';
    END IF;
    SELECT i.inhrelid::regclass::text INTO bad FROM pg_catalog.pg_partition_tree(relation) x
    JOIN pg_catalog.pg_inherits i ON i.inhrelid = x.relid
    JOIN pg_catalog.pg_trigger t ON t.tgrelid = x.relid AND t.tgparentid = 0
    WHERE x.relid <> relation AND t.tgfoid IN (SELECT outbox.capture_functions(x.relid)) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'outbox: partition % is watched on its own: unwatch it first', bad USING ERRCODE = 'object_in_use';
    END IF;
    SELECT pg_catalog.string_agg(t, ', ') INTO bad FROM outbox.capture_unsafe_types(relation) t;
    IF bad IS NOT NULL THEN
        RAISE EXCEPTION 'outbox: % has columns of type %, which has a user-defined cast to json: it would run foreign code in every write', shown, bad
            USING ERRCODE = 'feature_not_supported', HINT = 'Drop the cast, or change the column type.';
    END IF;
    SELECT pg_catalog.string_agg(pg_catalog.quote_ident(x.name), ', ') INTO bad FROM (
        SELECT pg_catalog.jsonb_array_elements_text(o -> 'subject') UNION SELECT o ->> 'org'
        UNION SELECT pg_catalog.jsonb_array_elements_text(o -> 'names')) AS x(name)
    WHERE x.name IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = relation AND a.attname = x.name AND a.attnum > 0 AND NOT a.attisdropped);
    IF bad IS NOT NULL THEN
        RAISE EXCEPTION 'outbox: table % has no column %', shown, bad USING ERRCODE = 'undefined_column';
    END IF;
    SELECT pg_catalog.string_agg(x.name, ', ') INTO bad FROM pg_catalog.jsonb_array_elements_text(o -> 'operations') AS x(name)
    WHERE x.name NOT IN ('insert', 'update', 'delete', 'truncate');
    IF bad IS NOT NULL OR o -> 'operations' = '[]' THEN
        RAISE EXCEPTION 'outbox: operations are insert, update, delete and truncate, not %', coalesce(bad, 'none')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF o ->> 'prefix' !~ '^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$' OR pg_catalog.length(o ->> 'prefix') > 190 THEN
        RAISE EXCEPTION 'outbox: type prefix % is not of the form orders or shop.orders (letters, digits, _ and -, joined by dots, at most 190)',
            pg_catalog.quote_literal(pg_catalog.left(o ->> 'prefix', 200)) USING ERRCODE = 'invalid_parameter_value';
    ELSIF pg_catalog.starts_with((o ->> 'prefix') || '.', 'outbox.') THEN
        RAISE EXCEPTION 'outbox: types that begin with outbox. are reserved: give another type prefix' USING ERRCODE = 'invalid_parameter_value';
    END IF;
END
$$;

-- Judge a condition before it stands in a trigger: names, types, and that it is one expression.
CREATE FUNCTION outbox.capture_check_condition(relation regclass, condition text) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    why text;
BEGIN
    EXECUTE pg_catalog.format(E'SELECT (SELECT (%s\n) IS TRUE FROM (SELECT "new".*) AS _columns) FROM %s AS "new", %2$s AS "old" LIMIT 0', condition, relation);
EXCEPTION
    WHEN OTHERS THEN
        GET STACKED DIAGNOSTICS why = MESSAGE_TEXT;
        RAISE EXCEPTION 'outbox: the condition is not a true-or-false expression over the columns of % (also NEW. and OLD.): %', relation, why
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Functions outside pg_catalog are written with their schema.';
END
$$;

-- The triggers' names begin with ! so that they fire before the user's own, in the order of names: a
-- change that a trigger of the user makes to the row must not be captured before the row's own.
-- Install capture on a table, or change it. Returns whether anything changed.
-- `condition` is a true-or-false SQL expression over the row's columns, NEW and OLD.
CREATE FUNCTION outbox.watch(
    relation regclass,
    org_column text DEFAULT NULL,
    type_prefix text DEFAULT NULL,
    subject_columns text[] DEFAULT NULL,
    operations text[] DEFAULT '{insert,update,delete,truncate}',
    include text[] DEFAULT NULL,
    exclude text[] DEFAULT NULL,
    condition text DEFAULT NULL,
    old boolean DEFAULT true
) RETURNS boolean
LANGUAGE plpgsql SET search_path = '' AS $$
#variable_conflict use_variable
DECLARE
    options jsonb;
    o jsonb;
    virtual text[];
    triggers jsonb;
    t jsonb;
    name text;
BEGIN
    IF relation IS NULL THEN
        RAISE EXCEPTION 'outbox: no table given' USING ERRCODE = 'invalid_parameter_value';
    ELSIF org_column = '' OR type_prefix = '' THEN
        RAISE EXCEPTION 'outbox: org_column and type_prefix must not be empty; leave org_column null for no organization'
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF include IS NOT NULL AND exclude IS NOT NULL THEN
        RAISE EXCEPTION 'outbox: give either the columns to include or those to exclude' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    options := pg_catalog.jsonb_build_object('org_column', org_column, 'type_prefix', type_prefix, 'subject_columns', subject_columns,
        'operations', operations, 'include', include, 'exclude', exclude, 'condition', condition, 'old', coalesce(old, true), 'watched_as', (
            SELECT pg_catalog.jsonb_build_array(n.nspname, c.relname) FROM pg_catalog.pg_class c
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation));
    -- A trigger does not see the value of a virtual column: better none than a wrong one.
    virtual := ARRAY(SELECT a.attname FROM pg_catalog.pg_attribute a
                     WHERE a.attrelid = relation AND a.attgenerated = 'v' AND NOT a.attisdropped);
    IF include && virtual THEN
        RAISE EXCEPTION 'outbox: virtual generated columns cannot be captured: %', pg_catalog.array_to_string(virtual, ', ')
            USING ERRCODE = 'feature_not_supported';
    END IF;
    SELECT pg_catalog.jsonb_build_object(
        'org', nullif(org_column, ''),
        'prefix', coalesce(type_prefix, pg_catalog.regexp_replace(c.relname, '[^A-Za-z0-9_-]', '_', 'g')),
        'subject', coalesce(pg_catalog.to_jsonb(subject_columns), (
            SELECT pg_catalog.jsonb_agg(a.attname ORDER BY pg_catalog.array_position(i.indkey::int2[], a.attnum))
            FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
            WHERE i.indrelid = relation AND i.indisprimary), '[]'),
        'operations', operations, 'condition', nullif(condition, ''), 'old', coalesce(old, true),
        'filtered', include IS NOT NULL OR exclude IS NOT NULL OR virtual <> '{}', 'keep', include IS NOT NULL,
        'names', coalesce(include, exclude || virtual, virtual),
        'schema', n.nspname, 'table', c.relname)
    INTO o FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = relation;
    IF o IS NULL THEN
        RAISE EXCEPTION 'outbox: there is no such table' USING ERRCODE = 'undefined_table';
    END IF;
    PERFORM outbox.capture_check(relation, o);
    IF o ->> 'condition' IS NOT NULL THEN
        PERFORM outbox.capture_check_condition(relation, o ->> 'condition');
    END IF;
    triggers := outbox.capture_triggers(relation, o);
    IF outbox.capture_stands(relation, triggers, options) THEN
        RETURN false;
    END IF;
    PERFORM outbox.unwatch(relation);
    -- A function's new owner must be allowed to create in its schema, for this moment only.
    GRANT CREATE ON SCHEMA outbox TO outbox_owner;
    FOR t IN SELECT pg_catalog.jsonb_array_elements(triggers) LOOP
        name := pg_catalog.format('outbox.%I', 'capture_' || relation::oid || '_' || (t ->> 'kind'));
        EXECUTE pg_catalog.format('CREATE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = %L '
            -- The writer's settings must neither round numbers nor change the form of values.
            'SET extra_float_digits = 1 SET bytea_output = hex SET intervalstyle = postgres AS %L', name, '', t ->> 'body');
        EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s() FROM PUBLIC', name);
        EXECUTE pg_catalog.format('COMMENT ON FUNCTION %s() IS %L', name, options);
        EXECUTE pg_catalog.format('CREATE TRIGGER %I AFTER %s ON %s %s EXECUTE FUNCTION %s()',
            '!outbox_' || (t ->> 'kind'), pg_catalog.upper(t ->> 'kind'), relation, t ->> 'fires', name);
        EXECUTE pg_catalog.format('ALTER FUNCTION %s() OWNER TO outbox_owner', name);
    END LOOP;
    IF (triggers -> 0 ->> 'fires') || coalesce(triggers -> 1 ->> 'fires', '') LIKE '%REFERENCING%' THEN
        -- As a partition the table would lose its statement-level capture unseen. PostgreSQL refuses
        -- to attach a table with such a trigger, also when it is disabled; the name is the message.
        name := pg_catalog.format('outbox.%I', 'capture_' || relation::oid || '_guard');
        EXECUTE pg_catalog.format('CREATE FUNCTION %s() RETURNS trigger LANGUAGE plpgsql SET search_path = %L AS %L', name, '', 'BEGIN RETURN NULL; END');
        EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s() FROM PUBLIC', name);
        EXECUTE pg_catalog.format('CREATE TRIGGER "!outbox_unwatch_before_attaching" AFTER %s ON %s REFERENCING %s TABLE AS _rows FOR EACH ROW EXECUTE FUNCTION %s()',
            pg_catalog.upper(triggers #>> '{0,kind}'), relation, CASE triggers #>> '{0,kind}' WHEN 'delete' THEN 'OLD' ELSE 'NEW' END, name);
        EXECUTE pg_catalog.format('ALTER TABLE %s DISABLE TRIGGER "!outbox_unwatch_before_attaching"', relation);
    END IF;
    REVOKE CREATE ON SCHEMA outbox FROM outbox_owner;
    RETURN true;
END
$$;

-- May a statement-level trigger capture this kind of change? Only on a plain table: a parent's does
-- not fire for rows written straight into a partition. And only where no trigger of the user could
-- change a row before the statement ends: its change would be captured before the row's own.
CREATE FUNCTION outbox.capture_by_statement(kind text, relation oid, o jsonb) RETURNS boolean
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT kind IN ('insert', 'delete') AND o ->> 'condition' IS NULL AND NOT (o ->> 'filtered')::boolean
        AND c.relkind = 'r' AND NOT c.relispartition
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE relation IN (i.inhrelid, i.inhparent))
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
                        WHERE t.tgrelid = relation AND NOT t.tgisinternal AND p.pronamespace <> 'outbox'::regnamespace
                          AND t.tgtype & 1 = 1 AND t.tgtype & 66 = 0
                          AND t.tgtype & CASE kind WHEN 'insert' THEN 4 ELSE 8 END > 0)
    FROM pg_catalog.pg_class c WHERE c.oid = relation
$$;

-- The triggers a table must have: kind, when they fire, code.
CREATE FUNCTION outbox.capture_triggers(relation oid, o jsonb) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('kind', x.kind, 'fires', x.fires, 'body',
        -- The first line makes the body differ where only the firing does.
        E'\n-- ' || x.fires || outbox.capture_body(x.kind, x.by_statement, relation, o)) ORDER BY x.kind)
    FROM (SELECT k.kind, k.by_statement, CASE
              WHEN k.kind = 'truncate' THEN 'FOR EACH STATEMENT'
              -- The stored image decides: it works for types without equality too.
              WHEN k.kind = 'update' THEN 'FOR EACH ROW WHEN (OLD.* OPERATOR(pg_catalog.*<>) NEW.*)'
              WHEN NOT k.by_statement THEN 'FOR EACH ROW'
              ELSE 'REFERENCING ' || CASE k.kind WHEN 'insert' THEN 'NEW' ELSE 'OLD' END || ' TABLE AS _rows FOR EACH STATEMENT' END
          FROM (SELECT DISTINCT n.kind, outbox.capture_by_statement(n.kind, relation, o) AS by_statement
                FROM pg_catalog.jsonb_array_elements_text(o -> 'operations') AS n(kind)) AS k) AS x(kind, by_statement, fires)
$$;

-- Does a table have exactly these triggers, enabled, with these options?
CREATE FUNCTION outbox.capture_stands(relation oid, triggers jsonb, options jsonb) RETURNS boolean
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce((SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('kind', pg_catalog.replace(t.tgname, '!outbox_', ''), 'body', p.prosrc)
                             ORDER BY pg_catalog.replace(t.tgname, '!outbox_', '')) = (
            SELECT pg_catalog.jsonb_agg(x - 'fires' ORDER BY x ->> 'kind') FROM pg_catalog.jsonb_array_elements(triggers) x)
        AND pg_catalog.bool_and(t.tgenabled = 'O' AND pg_catalog.obj_description(p.oid, 'pg_proc') = options::text)
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
    WHERE t.tgrelid = relation AND p.oid IN (SELECT outbox.capture_functions(relation)) AND p.proname !~ '_guard$'), false)
$$;

-- Remove capture from a table, without a trace. Returns whether there was any.
CREATE FUNCTION outbox.unwatch(relation regclass) RETURNS boolean
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    functions oid[] := ARRAY(SELECT outbox.capture_functions(relation));
    name text;
    f oid;
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = relation AND t.tgparentid <> 0 AND t.tgfoid = ANY (functions)) THEN
        RAISE EXCEPTION 'outbox: % is a partition of a watched table: unwatch that table', relation USING ERRCODE = 'object_in_use';
    END IF;
    FOR name IN SELECT t.tgname FROM pg_catalog.pg_trigger t WHERE t.tgrelid = relation AND t.tgfoid = ANY (functions) LOOP
        EXECUTE pg_catalog.format('DROP TRIGGER %I ON %s', name, relation);
    END LOOP;
    FOREACH f IN ARRAY functions LOOP
        EXECUTE pg_catalog.format('DROP FUNCTION %s', f::regprocedure);
    END LOOP;
    RETURN functions <> '{}';
END
$$;

-- The watched tables with their options, and what is wrong with them. `table` is null where the
-- table was dropped and functions were left behind.
CREATE FUNCTION outbox.watches()
RETURNS TABLE (schema text, "table" text, options jsonb, problems text[])
LANGUAGE plpgsql STABLE SET search_path = '' AS $$
#variable_conflict use_column
DECLARE
    w record;
    r record;
BEGIN
    FOR w IN
        SELECT t.tgrelid AS relation, n.nspname, c.relname, c.relkind, c.relispartition,
               (pg_catalog.array_agg(pg_catalog.obj_description(t.tgfoid, 'pg_proc')))[1]::jsonb AS options,
               pg_catalog.string_agg(pg_catalog.substr(t.tgname, 9), ', ' ORDER BY t.tgname) FILTER (WHERE t.tgenabled IN ('D', 'R')) AS disabled
        FROM pg_catalog.pg_trigger t
        JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
        JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE t.tgparentid = 0 AND p.pronamespace = 'outbox'::regnamespace AND p.proname ~ '^capture_[0-9]+_(insert|update|delete|truncate)$'
        GROUP BY 1, 2, 3, 4, 5 ORDER BY 2, 3
    LOOP
        schema := w.nspname;
        "table" := w.relname;
        options := w.options;
        problems := outbox.capture_problems(w.relation, w.options);
        IF w.disabled IS NOT NULL THEN
            problems := problems || ('capture is disabled for: ' || w.disabled);
        END IF;
        RETURN NEXT;
    END LOOP;
    FOR r IN
        SELECT p.oid, p.proname FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'outbox'::regnamespace AND p.proname ~ '^capture_[0-9]+_[a-z]+$'
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgfoid = p.oid) ORDER BY p.proname
    LOOP
        schema := NULL;
        "table" := NULL;
        options := pg_catalog.obj_description(r.oid, 'pg_proc')::jsonb;
        problems := ARRAY[pg_catalog.format('the table of outbox.%I is gone: SELECT outbox.forget()', r.proname)];
        RETURN NEXT;
    END LOOP;
END
$$;

-- What is wrong with a watched table, as far as its columns and relatives tell.
CREATE FUNCTION outbox.capture_problems(relation oid, options jsonb) RETURNS text[]
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT coalesce(pg_catalog.array_agg(x.problem), '{}') FROM (
        SELECT pg_catalog.format('organization column %I is gone: every write fails', options ->> 'org_column') AS problem
        WHERE options ->> 'org_column' IS NOT NULL AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = relation AND a.attname = options ->> 'org_column' AND a.attnum > 0 AND NOT a.attisdropped)
        UNION ALL
        SELECT pg_catalog.format('renamed since: events still name %s.%s until outbox watch runs again',
                                 options #>> '{watched_as,0}', options #>> '{watched_as,1}')
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = relation AND options -> 'watched_as' <> pg_catalog.jsonb_build_array(n.nspname, c.relname)
        UNION ALL
        SELECT pg_catalog.format('subject column %I is gone: events have no subject', s.name)
        FROM pg_catalog.jsonb_array_elements_text(nullif(options -> 'subject_columns', 'null')) AS s(name)
        WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = relation AND a.attname = s.name AND a.attnum > 0 AND NOT a.attisdropped)
        UNION ALL
        SELECT pg_catalog.format('a column has type %s with a user-defined cast to json: it runs foreign code in every write', t)
        FROM outbox.capture_unsafe_types(relation) t
        UNION ALL
        SELECT pg_catalog.format('partition %s is watched on its own: its events come twice', x.relid::regclass)
        FROM pg_catalog.pg_partition_tree(relation) x
        WHERE x.relid <> relation AND EXISTS (SELECT FROM pg_catalog.pg_trigger t
            WHERE t.tgrelid = x.relid AND t.tgparentid = 0 AND t.tgfoid IN (SELECT outbox.capture_functions(x.relid)))
    ) x
$$;

-- Drop the trigger functions whose table is gone. Returns how many there were.
CREATE FUNCTION outbox.forget() RETURNS integer
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    f oid;
    dropped integer := 0;
BEGIN
    FOR f IN SELECT p.oid FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'outbox'::regnamespace AND p.proname ~ '^capture_[0-9]+_[a-z]+$'
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgfoid = p.oid) LOOP
        EXECUTE pg_catalog.format('DROP FUNCTION %s', f::regprocedure);
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END
$$;

-- The generated functions call these as outbox_owner.
GRANT EXECUTE ON FUNCTION outbox.kept_slowly(anyelement, text[], boolean),
    outbox.changed_slowly(anyelement, anyelement, text[], boolean) TO outbox_owner;
