-- Notes content that is about to be stored, before it is. Rows are locked in order. What is being removed
-- just now is not noted: it may be stored once it is gone.
--
-- orgs, sha256s text[]: pairs, sorted; '' is no organization
-- A row for each that is noted: org, sha256
INSERT INTO outbox.artifact_stray AS s (org, sha256, since)
SELECT u.org, u.sha256, clock_timestamp() FROM unnest(%(orgs)s::text[], %(sha256s)s::text[]) AS u (org, sha256)
ORDER BY u.org, u.sha256
ON CONFLICT (org, sha256) DO UPDATE SET since = clock_timestamp(), removing_until = NULL
WHERE s.removing_until IS NULL OR s.removing_until <= clock_timestamp()
RETURNING s.org, s.sha256
