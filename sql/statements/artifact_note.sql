-- Notes content that is about to be stored, before it is. Rows are locked in order.
--
-- orgs, sha256s text[]: pairs, sorted; '' is no organization
INSERT INTO outbox.artifact_stray AS s (org, sha256, since)
SELECT u.org, u.sha256, clock_timestamp() FROM unnest(%(orgs)s::text[], %(sha256s)s::text[]) AS u (org, sha256)
ORDER BY u.org, u.sha256
ON CONFLICT (org, sha256) DO UPDATE SET since = clock_timestamp()
