-- Adds a schedule.
--
-- name, cron, timezone, type text, org_id text or null, payload text or null: JSON, missed text
-- next_at timestamptz: its first tick
-- One row, none if the name is taken: name
INSERT INTO outbox.schedule (name, cron, timezone, type, org_id, payload, missed, next_at)
VALUES (%(name)s::text, %(cron)s::text, %(timezone)s::text, %(type)s::text, %(org_id)s::text, %(payload)s::text::json,
        %(missed)s::text, %(next_at)s::timestamptz)
ON CONFLICT (name) DO NOTHING
RETURNING name
