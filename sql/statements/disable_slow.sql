-- Disables subscriptions whose filter takes too long: what may match is held, nothing is lost and
-- nothing is sent unjudged. Runs under the lock of configuration.
--
-- ids bigint[]
UPDATE outbox.subscription SET state = 'disabled', state_reason = 'filter_timeout', revision = revision + 1
WHERE id = ANY (%(ids)s::bigint[]) AND state = 'active'
