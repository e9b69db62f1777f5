-- Gives a new subscription its options. Runs in the transaction that adds it; note_revisions.sql follows.
--
-- id bigint
-- delay, ttl interval or null, priority text or null, tags text[]
-- key text or null, key_concurrency int or null
-- use_key text or null, once_for interval or null, debounce interval or null, debounce_max interval or null
UPDATE outbox.subscription s
SET delay = make_interval(secs => extract(epoch FROM %(delay)s::interval)::float8),
    ttl = make_interval(secs => extract(epoch FROM %(ttl)s::interval)::float8),
    priority = %(priority)s::text, tags = %(tags)s::text[],
    order_mode = CASE WHEN %(key)s::text IS NULL THEN s.order_mode ELSE 'share' END,
    key = %(key)s::text, key_concurrency = %(key_concurrency)s::int,
    use_key = %(use_key)s::text, once_for = make_interval(secs => extract(epoch FROM %(once_for)s::interval)::float8),
    debounce = make_interval(secs => extract(epoch FROM %(debounce)s::interval)::float8),
    debounce_max = make_interval(secs => extract(epoch FROM %(debounce_max)s::interval)::float8)
WHERE s.id = %(id)s::bigint
