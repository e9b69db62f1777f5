-- Opens a new epoch: from here on delivery ids are others than in the original, and what was
-- captured up to here is held when it is routed. Runs under the lock of configuration.
--
-- instance text
-- One row: epoch
INSERT INTO outbox.installation (epoch, instance, system_identifier, database_oid, salt, first_event_id, hold_event_id)
SELECT n.epoch, %(instance)s::text, c.system_identifier::text, d.oid::bigint, gen_random_uuid(), n.event_id, n.event_id
FROM (SELECT (SELECT max(epoch) + 1 FROM outbox.installation) AS epoch, nextval('outbox.event_id') AS event_id) n,
     pg_catalog.pg_control_system() c, pg_catalog.pg_database d
WHERE d.datname = pg_catalog.current_database()
RETURNING epoch
