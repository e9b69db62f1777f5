-- Makes a dead letter what its facts say. Runs under the lock of configuration, on a row that is locked or
-- was not there: one that came in between is somebody's who knew better.
--
-- id uuid and the columns of outbox/store/rebuild_fold.py, DEAD_COLUMNS; detail as text
-- known boolean: the row was there when it was judged
INSERT INTO outbox.dead_letter AS d (id, event_id, event_slot, subscription_id, revision, generation, lane, org_id,
    order_key, attempts, budget, expiries, expires_at, reason, detail, died_at)
VALUES (%(id)s::uuid, %(event_id)s::bigint, %(event_slot)s::smallint, %(subscription_id)s::bigint,
    %(revision)s::int, %(generation)s::int, %(lane)s::bigint, %(org_id)s::text, %(order_key)s::bigint,
    %(attempts)s::int, %(budget)s::int, %(expiries)s::int, %(expires_at)s::timestamptz, %(reason)s::text,
    %(detail)s::text::jsonb, %(died_at)s::timestamptz)
ON CONFLICT (id) DO UPDATE SET
    event_id = excluded.event_id, event_slot = excluded.event_slot, subscription_id = excluded.subscription_id,
    revision = excluded.revision, generation = excluded.generation, lane = excluded.lane, org_id = excluded.org_id,
    order_key = excluded.order_key, attempts = excluded.attempts, budget = excluded.budget,
    expiries = excluded.expiries, expires_at = excluded.expires_at, reason = excluded.reason,
    detail = excluded.detail, died_at = excluded.died_at
WHERE %(known)s::boolean
