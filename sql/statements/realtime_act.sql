-- From here to the end of the transaction, be a client as PostgREST and Realtime would have it.
--
-- role, topic, claims, sub, headers: text
SELECT set_config('realtime.topic', %(topic)s, true), set_config('request.jwt.claims', %(claims)s, true),
       set_config('request.jwt.claim.sub', %(sub)s, true), set_config('request.jwt.claim.role', %(role)s, true),
       set_config('request.headers', %(headers)s, true), set_config('role', %(role)s, true)
