-- Moves an endpoint to another state; a removed one takes its subscriptions with it and is not
-- moved again. Runs under the lock of configuration; note_revisions.sql follows.
--
-- id bigint
-- org_id text or null: only an endpoint of this organization
-- state text: active, paused, disabled, removed
-- from_states text[]: states it may be moved from; in any other nothing changes
-- reason text or null
-- One row, none if there is no such endpoint: was, now_is (text)
WITH found AS MATERIALIZED (
    SELECT n.id, n.state FROM outbox.endpoint n
    WHERE n.id = %(id)s::bigint AND (%(org_id)s::text IS NULL OR n.org_id = %(org_id)s::text)
    FOR UPDATE
),
moved AS (
    UPDATE outbox.endpoint n
    SET state = %(state)s::text, state_reason = %(reason)s::text, revision = n.revision + 1
    FROM found f WHERE n.id = f.id AND f.state = ANY (%(from_states)s::text[])
    RETURNING n.id, n.state
),
followed AS (
    UPDATE outbox.subscription s SET state = 'removed', revision = s.revision + 1
    FROM moved m WHERE s.endpoint_id = m.id AND m.state = 'removed' AND s.state <> 'removed'
),
-- Who resumes or removes it knows how it was: it is judged anew.
forgiven AS (
    DELETE FROM outbox.lane_health h USING moved m WHERE h.lane = m.id AND m.state IN ('active', 'removed')
)
SELECT f.state AS was, coalesce(m.state, f.state) AS now_is FROM found f LEFT JOIN moved m ON m.id = f.id
