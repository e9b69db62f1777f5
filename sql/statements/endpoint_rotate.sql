-- Gives an endpoint a new signing key. The old ones sign beside it until the overlap is over. Runs
-- under the lock of configuration.
--
-- id bigint, org_id text or null: only an endpoint of this organization
-- secret_id bigint, kind text, sealed bytea
-- overlap interval, keys_max int: keys that sign at the same time, at most
-- One row, none if there is no such endpoint: rotated (boolean: false where too many keys still
-- sign), old_until (timestamptz)
WITH found AS MATERIALIZED (
    SELECT n.id, clock_timestamp() + %(overlap)s::interval AS old_until FROM outbox.endpoint n
    WHERE n.id = %(id)s::bigint AND n.state <> 'removed'
      AND (%(org_id)s::text IS NULL OR n.org_id = %(org_id)s::text)
    FOR UPDATE
),
room AS MATERIALIZED (
    SELECT f.* FROM found f WHERE %(keys_max)s::int > (
        SELECT count(*) FROM outbox.secret s WHERE s.endpoint_id = f.id
           AND (s.expires_at IS NULL OR s.expires_at > clock_timestamp()) AND %(overlap)s::interval > interval '0')
),
old AS (
    UPDATE outbox.secret s SET expires_at = least(s.expires_at, r.old_until)
    FROM room r WHERE s.endpoint_id = r.id
),
new AS (
    INSERT INTO outbox.secret (id, endpoint_id, kind, sealed)
    SELECT %(secret_id)s::bigint, r.id, %(kind)s::text, %(sealed)s::bytea FROM room r
),
moved AS (
    UPDATE outbox.endpoint n SET revision = n.revision + 1 FROM room r WHERE n.id = r.id
)
SELECT EXISTS (SELECT FROM room) AS rotated, f.old_until FROM found f
