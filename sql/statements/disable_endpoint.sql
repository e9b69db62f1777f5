-- Disables an active endpoint. Its live deliveries are held as they come due. Runs under the
-- dispatch lock.
--
-- id bigint, reason text
UPDATE outbox.endpoint SET state = 'disabled', state_reason = %(reason)s::text, revision = revision + 1
WHERE id = %(id)s::bigint AND state = 'active'
