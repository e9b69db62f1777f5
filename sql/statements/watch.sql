-- Writes down what running attempts tell, and looks which of them are still held: who was cancelled,
-- redriven or lost its lease is stopped. A progress is a hint for people: no fact, gone with its
-- delivery.
--
-- now      timestamptz or null
-- ids      uuid[], tokens bigint[]: the attempts
-- told     boolean[]: whether there is something new
-- percents float8[], notes text[], metadata text[]: JSON
-- over     uuid[]: deliveries that have ended
-- A row each for what is still held: id
WITH clock AS MATERIALIZED (SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now),
held AS MATERIALIZED (
    SELECT d.id, i.told, i.percent, i.note, i.metadata FROM (
        SELECT u.* FROM unnest(%(ids)s::uuid[], %(tokens)s::bigint[], %(told)s::boolean[], %(percents)s::float8[],
                               %(notes)s::text[], %(metadata)s::text[])
            AS u (id, token, told, percent, note, metadata) ORDER BY u.id) i
    CROSS JOIN LATERAL (
        SELECT d.id, d.token, d.state FROM outbox.delivery d WHERE d.id = i.id
        OFFSET 0) d
    WHERE d.state = 'leased' AND d.token = i.token
),
written AS (
    INSERT INTO outbox.progress AS p (delivery_id, percent, note, metadata, at)
    SELECT h.id, h.percent, h.note, h.metadata::jsonb, clock.now FROM clock, held h WHERE h.told
    ON CONFLICT (delivery_id) DO UPDATE
    SET percent = excluded.percent, note = excluded.note, metadata = excluded.metadata, at = excluded.at
),
gone AS (
    DELETE FROM outbox.progress p WHERE p.delivery_id = ANY (%(over)s::uuid[])
)
SELECT h.id FROM held h
