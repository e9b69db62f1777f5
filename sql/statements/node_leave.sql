-- A daemon or worker ended in order: process 0 stands for none, and its last poll is still told.
--
-- id uuid
UPDATE outbox.node SET pid = 0 WHERE id = %(id)s::uuid
