-- What a redaction of some events would end and erase.
--
-- ids bigint[], deliveries uuid[]: all of their deliveries (redact_owed.sql)
-- kept text[]: what stays of a detail
-- One row: pending, live, dead, facts, dedupe, emails, replays (not known before), artifacts (counts)
SELECT (SELECT count(*) FROM outbox.pending p WHERE p.id = ANY (%(ids)s::bigint[])) AS pending,
       (SELECT count(*) FROM outbox.delivery d WHERE d.id = ANY (%(deliveries)s::uuid[])) AS live,
       (SELECT count(*) FROM outbox.dead_letter d WHERE d.id = ANY (%(deliveries)s::uuid[])) AS dead,
       (SELECT count(*) FROM outbox.journal j
        WHERE j.event_id = ANY (%(ids)s::bigint[]) AND j.fact NOT IN ('routed', 'redacted')
          AND CASE WHEN jsonb_typeof(j.detail) = 'object'
                   THEN j.detail - %(kept)s::text[] <> '{}' ELSE j.detail IS NOT NULL END) AS facts,
       (SELECT count(*) FROM outbox.dedupe d WHERE d.event_id = ANY (%(ids)s::bigint[])) AS dedupe,
       (SELECT count(*) FROM outbox.email e
        WHERE e.slot = ANY ('{0,1,2,3,4,5,6,7}') AND e.delivery_id = ANY (%(deliveries)s::uuid[])) AS emails,
       0 AS replays,
       (SELECT count(*) FROM outbox.artifact a
        WHERE a.event_id = ANY (%(ids)s::bigint[]) OR a.announced && %(ids)s::bigint[]) AS artifacts
