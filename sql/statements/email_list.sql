-- Messages for operators, newest first, each with its recipients.
--
-- id uuid or null: only this one; org_id, state, address text or null: only messages of this organization,
-- with a recipient in this state, to this address
-- before timestamptz or null: frozen before; rows_max int
-- A row each: a JSON object
SELECT json_build_object(
    'delivery', e.delivery_id, 'event', e.event_id, 'subscription', e.subscription_id, 'org', e.org_id,
    'message_id', e.message_id, 'sender', e.sender, 'bytes', octet_length(e.mime), 'frozen_at', e.frozen_at,
    'recipients', (
        SELECT json_agg(json_build_object('address', r.address, 'state', r.state, 'reply', r.reply,
                                          'attempts', r.attempts, 'changed_at', r.changed_at) ORDER BY r.n)
        FROM outbox.email_recipient r WHERE r.slot = e.slot AND r.delivery_id = e.delivery_id)) AS email
FROM outbox.email e
WHERE (%(id)s::uuid IS NULL OR e.delivery_id = %(id)s::uuid)
  AND (%(org_id)s::text IS NULL OR e.org_id = %(org_id)s::text)
  AND (%(before)s::timestamptz IS NULL OR e.frozen_at < %(before)s::timestamptz)
  AND (%(state)s::text IS NULL AND %(address)s::text IS NULL OR EXISTS (
      SELECT FROM outbox.email_recipient r WHERE r.slot = e.slot AND r.delivery_id = e.delivery_id
        AND (%(state)s::text IS NULL OR r.state = %(state)s::text)
        AND (%(address)s::text IS NULL OR lower(r.address) = lower(%(address)s::text))))
ORDER BY e.frozen_at DESC
LIMIT %(rows_max)s::int
