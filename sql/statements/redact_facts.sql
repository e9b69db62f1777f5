-- Erases from the facts about some events what may quote the event or a receiver's answer. What is
-- named stays, for the fold needs it; a `routed` fact holds ids alone.
--
-- ids bigint[], kept text[]
UPDATE outbox.journal j
SET detail = CASE WHEN jsonb_typeof(j.detail) = 'object' THEN (
    SELECT jsonb_object_agg(i.key, i.value) FROM jsonb_each(j.detail) i WHERE i.key = ANY (%(kept)s::text[])) END
WHERE j.event_id = ANY (%(ids)s::bigint[]) AND j.fact NOT IN ('routed', 'redacted')
  AND CASE WHEN jsonb_typeof(j.detail) = 'object'
           THEN j.detail - %(kept)s::text[] <> '{}' ELSE j.detail IS NOT NULL END
