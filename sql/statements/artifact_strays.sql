-- Claims content to remove from the store: what went with its artifact, and what was noted long ago and
-- never settled. Whether another artifact names it is asked here, not when one goes: of two that go at once
-- each would see the other, and nobody would remove what both named.
--
-- after_s, hold_s float8: so long nobody else claims or notes it, unless it is forgotten before
-- rows_max int
-- A row each: org, sha256, removing_until
WITH found AS MATERIALIZED (
    SELECT s.org, s.sha256 FROM outbox.artifact_stray s
    WHERE (s.since IS NULL OR s.since < clock_timestamp() - make_interval(secs => %(after_s)s::float8))
      AND (s.removing_until IS NULL OR s.removing_until <= clock_timestamp())
      AND NOT EXISTS (
          SELECT FROM outbox.artifact a WHERE a.org_id IS NOT DISTINCT FROM nullif(s.org, '') AND a.sha256 = s.sha256)
    ORDER BY s.org, s.sha256 LIMIT %(rows_max)s::int FOR UPDATE SKIP LOCKED
)
UPDATE outbox.artifact_stray s SET removing_until = clock_timestamp() + make_interval(secs => %(hold_s)s::float8)
FROM found f WHERE s.org = f.org AND s.sha256 = f.sha256
RETURNING s.org, s.sha256, s.removing_until
