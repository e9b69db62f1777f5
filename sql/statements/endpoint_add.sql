-- Creates an endpoint with its signing key and its first subscription. Runs under the dispatch
-- lock; note_revisions.sql follows in the same transaction.
--
-- id, secret_id, subscription_id   bigint: drawn before, because what is sealed is bound to them
-- org_id                           text, null with all_orgs
-- all_orgs                         boolean
-- url                              text
-- headers_sealed                   bytea or null
-- concurrency int, rate_per_s float8 or null, timeout interval, gone_disables boolean
-- circuit boolean, disable_after interval or null
-- key_kind text, key_sealed bytea
-- patterns text[], filter text or null, retry text, max_age interval or null, body_format int,
-- order_mode text or null
WITH endpoint AS (
    INSERT INTO outbox.endpoint (id, org_id, url, headers_sealed, concurrency, rate_per_s, timeout, gone_disables,
        circuit, disable_after)
    VALUES (%(id)s::bigint, %(org_id)s::text, %(url)s::text, %(headers_sealed)s::bytea, %(concurrency)s::int,
            %(rate_per_s)s::float8, %(timeout)s::interval, %(gone_disables)s::boolean, %(circuit)s::boolean, %(disable_after)s::interval)
),
key AS (
    INSERT INTO outbox.secret (id, endpoint_id, kind, sealed)
    VALUES (%(secret_id)s::bigint, %(id)s::bigint, %(key_kind)s::text, %(key_sealed)s::bytea)
)
INSERT INTO outbox.subscription (id, kind, endpoint_id, lane, org_id, all_orgs, patterns, filter, retry, max_age, body_format, order_mode)
VALUES (%(subscription_id)s::bigint, 'webhook', %(id)s::bigint, %(id)s::bigint, %(org_id)s::text, %(all_orgs)s::boolean,
        %(patterns)s::text[], %(filter)s::text, %(retry)s::text, make_interval(secs => extract(epoch FROM %(max_age)s::interval)::float8), %(body_format)s::int, %(order_mode)s::text)
