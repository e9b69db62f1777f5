-- Endpoints with the keys that sign now, newest first. Expired keys stay out.
--
-- ids bigint[]
-- A row each: id, org_id, url, headers_sealed, timeout_s, gone_disables, revision, key_ids, kinds,
-- sealed, expires_in_s (arrays)
SELECT n.id, n.org_id, n.url, n.headers_sealed, extract(epoch FROM n.timeout)::float8 AS timeout_s,
       n.gone_disables, n.revision, k.ids, k.kinds, k.sealed, k.expires_in_s
FROM outbox.endpoint n LEFT JOIN LATERAL (
    SELECT array_agg(s.id ORDER BY s.id DESC) AS ids, array_agg(s.kind ORDER BY s.id DESC) AS kinds,
           array_agg(s.sealed ORDER BY s.id DESC) AS sealed,
           array_agg(extract(epoch FROM s.expires_at - clock_timestamp())::float8 ORDER BY s.id DESC) AS expires_in_s
    FROM outbox.secret s
    WHERE s.endpoint_id = n.id AND (s.expires_at IS NULL OR s.expires_at > clock_timestamp())
) k ON true
WHERE n.id = ANY (%(ids)s::bigint[])
