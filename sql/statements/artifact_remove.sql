-- Lets artifacts go by id; their content becomes stray, which
-- artifact_strays.sql heeds once no other names it.
--
-- ids uuid[]
-- One row: done (count)
WITH old AS MATERIALIZED (
    SELECT a.id FROM outbox.artifact a WHERE a.id = ANY (%(ids)s::uuid[]) ORDER BY a.id FOR UPDATE
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
