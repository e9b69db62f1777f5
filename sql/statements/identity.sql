-- Who this database says it is, and where it really stands.
--
-- One row: instance, system_identifier, database_oid (as recorded in the newest epoch), then
-- system_identifier and database_oid as they are now
SELECT i.instance, i.system_identifier, i.database_oid,
       c.system_identifier::text AS here_system_identifier, d.oid::bigint AS here_database_oid
FROM (SELECT * FROM outbox.installation ORDER BY epoch DESC LIMIT 1) i,
     pg_catalog.pg_control_system() c, pg_catalog.pg_database d
WHERE d.datname = pg_catalog.current_database()
