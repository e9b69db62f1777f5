-- The oldest live lease of a lane bounds the walk that counts its permits.
-- compatible-from: 10
--
-- Rows of leases that ended stand in the index for as long as somebody holds a snapshot. Tokens are drawn
-- in order, under the dispatch lock: all live leases of a lane have the token of the oldest one that was
-- seen, or a later one, however long their leases are. Tokens of relays before this migration are random and
-- larger than any of these, so that theirs are counted too.

CREATE SEQUENCE outbox.lease_token AS bigint CACHE 1;
GRANT SELECT ON SEQUENCE outbox.lease_token TO outbox_reader;
GRANT SELECT, USAGE, UPDATE ON SEQUENCE outbox.lease_token TO outbox_daemon;

DROP INDEX outbox.delivery_lane_lease;
CREATE INDEX delivery_lane_token ON outbox.delivery (lane, token) WHERE state = 'leased';
