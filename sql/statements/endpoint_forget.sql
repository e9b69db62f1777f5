-- Deletes what is secret of a removed endpoint, when nothing of it is owed any more.
--
-- id bigint
WITH keys AS (
    DELETE FROM outbox.secret s USING outbox.endpoint n
    WHERE n.id = s.endpoint_id AND n.id = %(id)s::bigint AND n.state = 'removed'
)
UPDATE outbox.endpoint n SET headers_sealed = NULL, revision = n.revision + 1
WHERE n.id = %(id)s::bigint AND n.state = 'removed' AND n.headers_sealed IS NOT NULL
