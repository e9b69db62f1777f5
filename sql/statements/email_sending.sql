-- Says, before the contents of messages are sent, to whom: who finds these recipients so later knows that
-- they may have been sent to. What is no delivery under lease any more is not among the rows, and must
-- not be sent.
--
-- now    timestamptz or null
-- wanted text: JSON: arrays of numbers of recipients, by delivery
-- slots  smallint[]: where they are
-- A row each: id, a delivery once for every recipient
WITH clock AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now
),
wanted AS MATERIALIZED (
    SELECT %(wanted)s::jsonb AS by_id
)
UPDATE outbox.email_recipient r SET state = 'sending', changed_at = (SELECT now FROM clock)
WHERE r.slot = ANY (%(slots)s::smallint[])
  AND r.delivery_id = ANY (ARRAY(SELECT k::uuid FROM wanted, jsonb_object_keys(by_id) k))
  AND (SELECT by_id FROM wanted) -> r.delivery_id::text @> to_jsonb(r.n)
  AND r.state IN ('queued', 'sending', 'deferred', 'unknown')
  AND (SELECT d.state FROM outbox.delivery d WHERE d.id = r.delivery_id) = 'leased'
RETURNING r.delivery_id AS id
