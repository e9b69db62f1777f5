-- Emits one event in the caller's transaction. Every parameter is text, whatever the driver.
--
-- type, payload (JSON), org, subject, ordering_key, headers (a JSON object)  text
-- deliver_at, expires_at  text: ISO 8601 with an offset
-- dedupe_key              text
-- dedupe_for_s            text: seconds, or null for the default
-- One row: the event's id, or the first event's id where the key was used before
SELECT outbox.emit(
    type => CAST(%(type)s AS text),
    payload => CAST(%(payload)s AS text),
    org_id => CAST(%(org)s AS text),
    subject => CAST(%(subject)s AS text),
    ordering_key => CAST(%(ordering_key)s AS text),
    headers => CAST(CAST(%(headers)s AS text) AS json),
    deliver_at => CAST(CAST(%(deliver_at)s AS text) AS timestamptz),
    expires_at => CAST(CAST(%(expires_at)s AS text) AS timestamptz),
    dedupe_key => CAST(%(dedupe_key)s AS text),
    dedupe_for => pg_catalog.make_interval(secs => CAST(CAST(%(dedupe_for_s)s AS text) AS float8)))
