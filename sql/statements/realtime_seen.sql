-- Which of the probe's rows does this role see? Some names (none) are words that change nothing:
-- the role must really be in force.
--
-- ids  uuid[]
-- role text
SELECT m.id FROM realtime.messages m WHERE m.id = ANY (%(ids)s::uuid[]) AND current_user = %(role)s
