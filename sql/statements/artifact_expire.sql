-- Lets artifacts go whose life is over; their content becomes stray, which
-- artifact_strays.sql heeds once no other names it.
--
-- keep_s float8, rows_max int
-- One row: done (count)
WITH old AS MATERIALIZED (
    SELECT a.id FROM outbox.artifact a
    WHERE a.created_at < clock_timestamp() - make_interval(secs => %(keep_s)s::float8)
    ORDER BY a.id LIMIT %(rows_max)s::int FOR UPDATE SKIP LOCKED
),
gone AS (
    DELETE FROM outbox.artifact a USING old o WHERE a.id = o.id RETURNING a.org_id, a.sha256
),
stray AS (
    INSERT INTO outbox.artifact_stray AS s (org, sha256)
    SELECT DISTINCT coalesce(g.org_id, ''), g.sha256 FROM gone g
    ORDER BY 1, 2
    ON CONFLICT (org, sha256) DO NOTHING
)
SELECT count(*) AS done FROM gone
