-- Asks the relay to judge anew whose turn it is, for ordered deliveries that were mended.
--
-- ids uuid[]
INSERT INTO outbox.order_signal (subscription_id, order_key)
SELECT DISTINCT d.subscription_id, d.order_key FROM outbox.delivery d
WHERE d.id = ANY (%(ids)s::uuid[]) AND d.order_key IS NOT NULL
