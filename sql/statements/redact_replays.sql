-- Erases from the filters of replays the subjects of some events, before these lose them.
--
-- ids bigint[], subject text or null: one more
UPDATE outbox.replay r SET filter = jsonb_set(r.filter, '{subject}', '"(redacted)"')
WHERE r.filter ->> 'subject' = %(subject)s::text
   OR r.filter ->> 'subject' IN (
        SELECT e.subject FROM outbox.event e
        WHERE e.slot = ANY ('{0,1,2,3,4,5,6,7}') AND e.id = ANY (%(ids)s::bigint[]))
