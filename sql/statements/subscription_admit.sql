-- Makes way for a subscription that older programs could not serve: from now on programs below a level
-- refuse to start. Those that run are named, and nothing has changed then.
--
-- level int: the least level that knows
-- One row: old (text[]: such daemons and workers, alive in the last 15 s)
WITH old AS MATERIALIZED (
    SELECT concat(n.kind, ' ', n.pid, ' on ', n.host) AS name FROM outbox.node n
    WHERE n.level < %(level)s::int AND n.pid <> 0 AND n.polled_at > clock_timestamp() - interval '15 s'
),
raised AS (
    UPDATE outbox.migration m SET compatible_from = %(level)s::int
    WHERE m.version = %(level)s::int AND m.compatible_from < %(level)s::int AND NOT EXISTS (SELECT FROM old)
)
SELECT ARRAY(SELECT o.name FROM old o ORDER BY o.name) AS old
