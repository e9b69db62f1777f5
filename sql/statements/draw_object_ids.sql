-- Draws ids of endpoints, secrets and subscriptions before their rows exist.
--
-- n int
-- A row each: id
SELECT nextval('outbox.object_id') AS id FROM generate_series(1, %(n)s::int)
