-- Every delivery of some events, live or ended: the facts name them. (No index finds a delivery by
-- its event; the journal has one.)
--
-- ids bigint[]
-- A row each: id
SELECT j.delivery_id AS id FROM outbox.journal j
WHERE j.event_id = ANY (%(ids)s::bigint[]) AND j.delivery_id IS NOT NULL
UNION
SELECT (i.value ->> 'delivery')::uuid
FROM outbox.journal j CROSS JOIN LATERAL jsonb_array_elements(
    CASE WHEN jsonb_typeof(j.detail) = 'array' THEN j.detail ELSE '[]' END) i (value)
WHERE j.event_id = ANY (%(ids)s::bigint[]) AND j.fact = 'routed'
