-- The bell is rung about fifty times a second at most, however many commit while nobody is awake to hear it.
-- compatible-from: 10
--
-- NOTIFY takes a lock of the whole cluster until its commit is on disk: where every commit rings, they
-- queue for it. So whoever rings writes down when, and others leave it at that for 20 ms. Should the
-- one who rang be slow to commit, another rings after that; should it roll back, the relay's own look
-- finds what it would have announced.

-- 1: a relay is awake and polls; 2: relays sleep and want to be rung; else: rung at this time, in
-- milliseconds since 1970, and nobody has woken yet.
ALTER SEQUENCE outbox.bell MAXVALUE 9223372036854775807;
GRANT UPDATE ON SEQUENCE outbox.bell TO outbox_owner;

-- Ring the relays if they sleep and nobody just did. Must run after the insert into `pending`: whoever
-- reads "awake" here had its row inserted before the relay looked for the last time. `bell` is what the
-- caller read there, or null.
DROP FUNCTION outbox.ring_bell();
CREATE FUNCTION outbox.ring_bell(bell bigint DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    was bigint := coalesce(bell, (SELECT last_value FROM outbox.bell));
    now_ms bigint := pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()) * 1000;
BEGIN
    -- A clock that was set back must not keep everybody silent.
    IF was = 2 OR was <> 1 AND now_ms - was NOT BETWEEN 0 AND 20 THEN
        PERFORM pg_catalog.setval('outbox.bell', now_ms);
        PERFORM pg_catalog.pg_notify('outbox', '');
    END IF;
END
$$;
REVOKE ALL ON FUNCTION outbox.ring_bell(bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.ring_bell(bigint) TO outbox_owner, outbox_daemon;

-- Tables that were watched before ring at every commit until `outbox watch` writes their triggers anew.
--
-- A trigger function that captures one row after the other: at row level, or over all rows of a
-- statement where the set-based code will not do.
CREATE OR REPLACE FUNCTION outbox.capture_body(kind text, statement_level boolean, relation oid, o jsonb) RETURNS text
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
    IF _bell <> 1 THEN
        PERFORM outbox.ring_bell(_bell);
    END IF;
    RETURN NULL;
END
$t$, pg_catalog.jsonb_build_object('rows', CASE
        WHEN kind = 'truncate' THEN outbox.capture_write((o ->> 'prefix') || '.truncated', 'NULL', 'NULL',
            outbox.capture_payload(o, 'TRUNCATE', 'NULL', 'NULL', 'NULL'))
        WHEN statement_level THEN outbox.capture_set_body(kind, relation, o)
        ELSE outbox.capture_row_body(kind, 'RETURN NULL', relation, o) END))
$$;
