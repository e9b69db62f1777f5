-- Forgets content that was removed from the store.
--
-- org, sha256 text, removing_until timestamptz: as it was claimed
DELETE FROM outbox.artifact_stray s
WHERE s.org = %(org)s::text AND s.sha256 = %(sha256)s::text AND s.removing_until = %(removing_until)s::timestamptz
