-- Disables an active endpoint and says so by an event of its organization. Its live deliveries are
-- held as they come due. Runs under the lock of configuration.
--
-- id bigint, reason text
WITH disabled AS (
    UPDATE outbox.endpoint SET state = 'disabled', state_reason = %(reason)s::text, revision = revision + 1
    WHERE id = %(id)s::bigint AND state = 'active'
    RETURNING id, org_id
)
SELECT outbox.announce('outbox.endpoint.disabled', d.org_id, concat('endpoints/', d.id),
                       json_build_object('endpoint', d.id, 'reason', %(reason)s::text)) AS event
FROM disabled d
