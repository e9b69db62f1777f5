-- Content to remove from the store: what went with its artifact, and what was noted long ago and never
-- settled. Whether another artifact names it is asked here, not when one goes: of two that go at once
-- each would see the other, and nobody would remove what both named.
--
-- after_s float8, rows_max int
-- A row each: org, sha256, since
SELECT s.org, s.sha256, s.since FROM outbox.artifact_stray s
WHERE (s.since IS NULL OR s.since < clock_timestamp() - make_interval(secs => %(after_s)s::float8))
  AND NOT EXISTS (
      SELECT FROM outbox.artifact a WHERE a.org_id IS NOT DISTINCT FROM nullif(s.org, '') AND a.sha256 = s.sha256)
ORDER BY s.org, s.sha256 LIMIT %(rows_max)s::int
