-- The id of a delivery is computed inside the statement that routes, its hash once.
-- compatible-from: 10
--
-- PostgreSQL inlines a function that is IMMUTABLE only if all that it calls is: date_part of a timestamptz
-- is not, so each id cost a call of its own, with three hashes (6.3 us; 1.5 us now).

-- The key whose hash is known (delivery_hash): a UUID of version 8, see delivery_id.
CREATE FUNCTION outbox.delivery_key(created_at timestamptz, hash bytea) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT pg_catalog.encode(
        pg_catalog.substr(pg_catalog.int8send(pg_catalog.floor(
            pg_catalog.date_part('epoch', created_at AT TIME ZONE 'UTC') * 1000)::bigint), 3, 6)
        || pg_catalog.set_byte(pg_catalog.set_byte(pg_catalog.substr(hash, 1, 10),
            0, (pg_catalog.get_byte(hash, 0) & 15) | 128), 2, (pg_catalog.get_byte(hash, 2) & 63) | 128),
        'hex')::uuid
$$;

CREATE OR REPLACE FUNCTION outbox.delivery_id(
    event_id bigint, created_at timestamptz, subscription_id bigint, generation integer, salt uuid
) RETURNS uuid
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT outbox.delivery_key(created_at, outbox.delivery_hash(event_id, subscription_id, generation, salt))
$$;

REVOKE ALL ON FUNCTION outbox.delivery_key(timestamptz, bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outbox.delivery_key(timestamptz, bytea) TO outbox_daemon;
