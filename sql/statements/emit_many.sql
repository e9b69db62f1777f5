-- Emits events in the caller's transaction, in the order given.
--
-- events text: a JSON array of objects: type, payload (JSON text), org, subject, ordering_key, headers,
--     deliver_at, expires_at, dedupe_key, dedupe_for_s
-- A row each, in order: id, that of the first event where its key was used before
SELECT x.id FROM (
    SELECT e.n, outbox.emit(
        type => e.value ->> 'type',
        payload => e.value ->> 'payload',
        org_id => e.value ->> 'org',
        subject => e.value ->> 'subject',
        ordering_key => e.value ->> 'ordering_key',
        headers => CAST(e.value ->> 'headers' AS json),
        deliver_at => CAST(e.value ->> 'deliver_at' AS timestamptz),
        expires_at => CAST(e.value ->> 'expires_at' AS timestamptz),
        dedupe_key => e.value ->> 'dedupe_key',
        dedupe_for => pg_catalog.make_interval(secs => CAST(e.value ->> 'dedupe_for_s' AS float8))) AS id
    FROM pg_catalog.json_array_elements(CAST(CAST(%(events)s AS text) AS json)) WITH ORDINALITY AS e (value, n)
    ORDER BY e.n OFFSET 0) x
ORDER BY x.n
