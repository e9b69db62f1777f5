-- Forgets content that was removed from the store. No row if it was noted again meanwhile, or if an
-- artifact names it: whoever removed it must put it back.
--
-- org, sha256 text, since timestamptz or null
-- One row: org
WITH gone AS (
    DELETE FROM outbox.artifact_stray s
    WHERE s.org = %(org)s::text AND s.sha256 = %(sha256)s::text AND s.since IS NOT DISTINCT FROM %(since)s::timestamptz
    RETURNING s.org, s.sha256
)
SELECT g.org FROM gone g WHERE NOT EXISTS (
    SELECT FROM outbox.artifact a WHERE a.org_id IS NOT DISTINCT FROM nullif(g.org, '') AND a.sha256 = g.sha256)
