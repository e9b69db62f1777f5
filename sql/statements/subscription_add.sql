-- Adds a subscription whose destination is not an endpoint: it is a lane of its own. Runs under the
-- lock of configuration; note_revisions.sql follows.
--
-- id bigint: drawn before
-- lane bigint: the id; negative where the daemon itself performs it
-- kind text, processor text or null: the name, where kind is 'processor'
-- org_id text or null: null means all organizations
-- config text: JSON
-- concurrency int or null, rate_per_s float8 or null, timeout interval or null
-- patterns text[], filter text or null, retry text, max_age interval or null, body_format int,
-- order_mode text or null
INSERT INTO outbox.subscription (id, kind, processor, lane, org_id, all_orgs, config, concurrency_max, rate_per_s_max,
    timeout, patterns, filter, retry, max_age, body_format, order_mode)
VALUES (%(id)s::bigint, %(kind)s::text, %(processor)s::text, %(lane)s::bigint, %(org_id)s::text, %(org_id)s::text IS NULL,
        %(config)s::jsonb, %(concurrency)s::int, %(rate_per_s)s::float8, %(timeout)s::interval, %(patterns)s::text[],
        %(filter)s::text, %(retry)s::text,
        make_interval(secs => extract(epoch FROM %(max_age)s::interval)::float8), %(body_format)s::int, %(order_mode)s::text)
