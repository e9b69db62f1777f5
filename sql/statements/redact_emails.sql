-- Erases the messages that were made of some events, their recipients and the replies.
--
-- deliveries uuid[]: all of the events' deliveries, whose rows are locked
-- One row: emails (count)
WITH people AS (
    DELETE FROM outbox.email_recipient r
    WHERE r.slot = ANY ('{0,1,2,3,4,5,6,7}') AND r.delivery_id = ANY (%(deliveries)s::uuid[])
),
messages AS (
    DELETE FROM outbox.email e
    WHERE e.slot = ANY ('{0,1,2,3,4,5,6,7}') AND e.delivery_id = ANY (%(deliveries)s::uuid[])
    RETURNING 1
)
SELECT count(*) AS emails FROM messages
