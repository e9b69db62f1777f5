-- Moves a subscription to another state. Runs under the lock of configuration; note_revisions.sql follows.
--
-- id bigint
-- org_id text or null: only a subscription of this organization
-- state text: active, paused, removed
-- from_states text[]: states it may be moved from; in any other nothing changes
-- One row, none if there is no such subscription: was, now_is (text), lane (bigint)
WITH found AS MATERIALIZED (
    SELECT s.id, s.state, s.lane FROM outbox.subscription s
    WHERE s.id = %(id)s::bigint AND (%(org_id)s::text IS NULL OR s.org_id = %(org_id)s::text)
    FOR UPDATE
),
moved AS (
    UPDATE outbox.subscription s SET state = %(state)s::text, state_reason = NULL, revision = s.revision + 1
    FROM found f WHERE s.id = f.id AND f.state = ANY (%(from_states)s::text[])
    RETURNING s.id, s.state
)
SELECT f.state AS was, coalesce(m.state, f.state) AS now_is, f.lane FROM found f LEFT JOIN moved m ON m.id = f.id
