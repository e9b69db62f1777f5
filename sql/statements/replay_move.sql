-- Moves a replay to another state. A batch that runs is waited for.
--
-- id text, org_id text or null: only a replay of this organization
-- state text: running, paused, aborted; from_states text[]: states it may be moved from
-- One row, none if there is no such replay: was, now_is (text)
WITH found AS MATERIALIZED (
    SELECT r.id, r.state FROM outbox.replay r
    WHERE r.id = %(id)s::text AND (%(org_id)s::text IS NULL OR r.org_id = %(org_id)s::text)
    FOR UPDATE
),
moved AS (
    UPDATE outbox.replay r
    SET state = %(state)s::text, moved_at = clock_timestamp(),
        ended_at = CASE WHEN %(state)s::text = 'aborted' THEN clock_timestamp() END
    FROM found f WHERE r.id = f.id AND f.state = ANY (%(from_states)s::text[])
    RETURNING r.id, r.state
)
SELECT f.state AS was, coalesce(m.state, f.state) AS now_is FROM found f LEFT JOIN moved m ON m.id = f.id
