-- Makes a live delivery what its facts say. Runs under the lock of configuration, on a row that is locked or
-- was not there: one that came in between is somebody's who knew better, a leased one is in use.
--
-- id uuid and the columns of outbox/store/rebuild_fold.py, LIVE_COLUMNS
-- known boolean: the row was there when it was judged
INSERT INTO outbox.delivery AS d (id, event_id, event_slot, subscription_id, revision, generation, lane, org_id,
    order_key, attempts, budget, expiries, expires_at, state, due_at, age_limit_at, held_at, held_reason, again)
VALUES (%(id)s::uuid, %(event_id)s::bigint, %(event_slot)s::smallint, %(subscription_id)s::bigint,
    %(revision)s::int, %(generation)s::int, %(lane)s::bigint, %(org_id)s::text, %(order_key)s::bigint,
    %(attempts)s::int, %(budget)s::int, %(expiries)s::int, %(expires_at)s::timestamptz, %(state)s::text,
    %(due_at)s::timestamptz, %(age_limit_at)s::timestamptz, %(held_at)s::timestamptz, %(held_reason)s::text,
    %(again)s::boolean)
ON CONFLICT (id) DO UPDATE SET
    event_id = excluded.event_id, event_slot = excluded.event_slot, subscription_id = excluded.subscription_id,
    revision = excluded.revision, generation = excluded.generation, lane = excluded.lane, org_id = excluded.org_id,
    order_key = excluded.order_key, attempts = excluded.attempts, budget = excluded.budget,
    expiries = excluded.expiries, expires_at = excluded.expires_at, state = excluded.state, due_at = excluded.due_at,
    age_limit_at = excluded.age_limit_at, held_at = excluded.held_at, held_reason = excluded.held_reason,
    again = excluded.again
WHERE %(known)s::boolean AND d.state <> 'leased'
