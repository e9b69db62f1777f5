"""Mutants of the rules at the edges: retries, emit, capture, the broker, signatures, secrets,
addresses."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

_RETRY = "tests/unit/test_retry.py::test_"
_VERDICT = "tests/engine/test_verdict.py::test_"
_SIGNATURE = "tests/unit/test_signature.py::test_"
_SECRETS = "tests/unit/test_secrets.py::test_"
_EGRESS = "tests/net/test_egress.py::test_"
_TLS = "tests/net/test_http_tls.py::test_"
_EMIT = "tests/emit/test_emit.py::test_"
_CHANGES = "tests/capture/test_changes.py::test_"
_FUNCTIONS = "sql/migrations/0002_functions.sql"
_CAPTURE = "sql/migrations/0003_capture.sql"

RULES = (
    # -- retries --------------------------------------------------------------------------------
    Mutant(
        "jitter-below-base",
        "jitter shortens a delay",
        "I5",
        (Edit("outbox/retry.py", "max(base, asked) + base * (", "max(base, asked) - base * ("),),
        (_RETRY + "the_delay_obeys_the_formula",),
    ),
    Mutant(
        "no-jitter",
        "jitter is left out: all who failed together come back together",
        "I5",
        (Edit("outbox/retry.py", "+ base * (policy.jitter * random())", ""),),
        (_RETRY + "a_delay_at_the_cap_is_still_jittered",),
    ),
    Mutant(
        "no-cap",
        "an exponential delay grows beyond its cap",
        "I5",
        (
            Edit(
                "outbox/retry.py",
                "return self.base if self.factor == 1 else self.cap",
                "return self.base if self.factor == 1 else 2 * self.cap",
            ),
        ),
        (_RETRY + "an_exponential_delay_stays_within_its_cap",),
    ),
    Mutant(
        "overflow",
        "the power is computed before the cap is looked at",
        "I5: nothing overflows at attempt 10^6",
        (
            Edit(
                "outbox/retry.py",
                "if steps * math.log(self.factor) >= math.log(self.cap / self.base):",
                "if self.base * self.factor**steps >= self.cap:",
            ),
        ),
        (_VERDICT + "due_times_obey_the_formula",),
    ),
    Mutant(
        "delays-fall",
        "a list of delays may fall",
        "I5",
        (
            Edit(
                "outbox/retry.py",
                "            if later < earlier:",
                "            if later < timedelta():",
            ),
        ),
        (_RETRY + "a_wrong_policy_says_in_one_line_what_to_write",),
    ),
    Mutant(
        "retry-after-ignored",
        "Retry-After is ignored",
        "I5",
        (Edit("outbox/retry.py", "return max(base, asked) +", "return base +"),),
        (_RETRY + "retry_after_lengthens_up_to_its_cap_and_is_not_multiplied_by_jitter",),
    ),
    Mutant(
        "retry-after-uncapped",
        "a receiver may put a delivery off for years",
        "I5",
        (Edit("outbox/retry.py", "asked = min(after, after_cap) if", "asked = after if"),),
        (_RETRY + "retry_after_lengthens_up_to_its_cap_and_is_not_multiplied_by_jitter",),
    ),
    Mutant(
        "one-attempt-more",
        "a budget has one attempt more than the policy says",
        "I4",
        (
            Edit(
                "outbox/retry.py",
                "if attempt >= policy.attempts_max:",
                "if attempt > policy.attempts_max:",
            ),
        ),
        (_VERDICT + "the_last_attempt_is_followed_by_death_and_says_so",),
    ),
    Mutant(
        "age-ignored",
        "a retry is planned past the maximum age",
        "the maximum age",
        (Edit("outbox/verdict.py", "if age_left is not None and delay >= age_left:", "if False:"),),
        (_VERDICT + "a_retry_that_would_come_past_the_maximum_age_is_death_now",),
    ),
    Mutant(
        "rejected-retried",
        "what the receiver rejected for good is tried again",
        "a closed set of outcomes",
        (
            Edit(
                "outbox/outcome.py",
                "PERMANENT = frozenset({Kind.REJECTED, Kind.DENIED})",
                "PERMANENT = frozenset({Kind.DENIED})",
            ),
        ),
        (_VERDICT + "what_was_refused_for_good_is_not_tried_again",),
    ),
    # -- emit and capture -----------------------------------------------------------------------
    Mutant(
        "key-without-lock",
        "emit does not take the lock of its ordering key: ids do not follow commits",
        "I8",
        (
            Edit(
                _FUNCTIONS,
                "    IF ordering_key IS NOT NULL THEN\n        -- Ids of one key",
                "    IF false THEN\n        -- Ids of one key",
            ),
        ),
        (_EMIT + "ids_of_an_ordering_key_are_drawn_in_the_order_of_commits",),
    ),
    Mutant(
        "dedupe-forgets",
        "a deduplication key that is in force is overwritten",
        "a key used twice is one event",
        (Edit(_FUNCTIONS, "            WHERE d.expires_at <= pg_catalog.clock_timestamp()\n", ""),),
        (_EMIT + "a_key_used_twice_is_one_event_with_the_first_id",),
    ),
    Mutant(
        "dedupe-across-organizations",
        "deduplication keys of all organizations are one",
        "I14",
        (
            Edit(
                _FUNCTIONS,
                "VALUES (coalesce(emit.org_id, ''), dedupe_key,",
                "VALUES ('', dedupe_key,",
            ),
            Edit(_FUNCTIONS, "WHERE d.org = coalesce(emit.org_id, '') AND", "WHERE d.org = '' AND"),
        ),
        (_EMIT + "a_key_belongs_to_its_organization",),
    ),
    Mutant(
        "id-before-transaction",
        "emit draws the event id before its transaction has one",
        "I9",
        (
            Edit(
                _FUNCTIONS,
                "    PERFORM pg_catalog.pg_current_xact_id();\n    v_id :=",
                "    v_id :=",
            ),
        ),
        (_EMIT + "whoever_has_drawn_an_event_id_is_seen_in_progress",),
    ),
    Mutant(
        "move-tells",
        "a row that moves between organizations is told to the new one as an update",
        "I14",
        (
            Edit(
                _CAPTURE,
                "'_org IS DISTINCT FROM _was_org' ELSE 'false' END,\n        'unchanged'",
                "'false' ELSE 'false' END,\n        'unchanged'",
            ),
        ),
        (_CHANGES + "a_move_between_organizations_is_two_events_that_tell_nothing",),
    ),
    # -- the broker -----------------------------------------------------------------------------
    Mutant(
        "namespace-shared",
        "all installations share one queue in the broker",
        "two databases may share a broker",
        (
            Edit(
                "processors/broker/over_redis.py",
                'self._list = f"{namespace}:{QUEUE}"',
                'self._list = f"outbox:{QUEUE}"',
            ),
        ),
        ("tests/broker/test_redis.py::test_two_namespaces_never_meet",),
    ),
    # -- signatures -----------------------------------------------------------------------------
    Mutant(
        "body-unsigned",
        "the signature does not cover the body",
        "Standard Webhooks",
        (Edit("outbox/signature.py", "    state.update(body)\n", ""),),
        (_SIGNATURE + "signs_as_the_vectors_say",),
    ),
    Mutant(
        "timestamp-unsigned",
        "the signature does not cover the time of the attempt",
        "Standard Webhooks",
        (
            Edit(
                "outbox/signature.py",
                'head = f"{message_id}.{timestamp}.".encode()',
                'head = f"{message_id}.".encode()',
            ),
        ),
        (_SIGNATURE + "signs_as_the_vectors_say",),
    ),
    Mutant(
        "other-body-signed",
        "other bytes are signed than are sent",
        "Standard Webhooks",
        (
            Edit(
                "processors/webhook.py",
                "message_id, timestamp, body)\n        lines",
                "message_id, timestamp, work.payload)\n        lines",
            ),
        ),
        (
            "tests/net/test_webhook.py::test_a_receiver_with_an_independent_library_verifies_the_request",
        ),
    ),
    Mutant(
        "any-signature-verifies",
        "a receiver accepts any signature",
        "a forger is refused",
        (
            Edit(
                "outbox/signature.py",
                "if not _any_match(keys, signatures, head, body):",
                "if not signatures:",
            ),
        ),
        (_SIGNATURE + "refuses_what_the_vectors_refuse",),
    ),
    Mutant(
        "old-request-verifies",
        "a receiver accepts a request of any age",
        "a recorded request is refused",
        (Edit("outbox/signature.py", "    if age > tolerance:", "    if False:"),),
        (_SIGNATURE + "refuses_what_the_vectors_refuse",),
    ),
    # -- secrets and addresses --------------------------------------------------------------------
    Mutant(
        "secret-without-place",
        "a sealed secret opens in any row of any organization",
        "secrets are bound to their place",
        (
            Edit(
                "outbox/secrets.py",
                "encrypt(nonce, plaintext, header + context.encode())",
                "encrypt(nonce, plaintext, header)",
            ),
            Edit(
                "outbox/secrets.py",
                "                nonce, sealed[_NONCE_END:], header + context.encode()\n",
                "                nonce, sealed[_NONCE_END:], header\n",
            ),
        ),
        (_SECRETS + "a_value_moved_to_another_place_does_not_open",),
    ),
    Mutant(
        "nonce-repeats",
        "every secret is sealed with the same nonce",
        "AES-GCM needs a nonce of its own",
        (
            Edit(
                "outbox/secrets.py",
                "nonce = self._random_bytes(_NONCE_END - _KEY_ID_END)",
                "nonce = bytes(_NONCE_END - _KEY_ID_END)",
            ),
        ),
        (_SECRETS + "nonces_come_from_the_source_given",),
    ),
    Mutant(
        "loopback-open",
        "the egress guard lets 127.0.0.0/8 through",
        "one egress guard",
        (Edit("processors/egress.py", '        "127.0.0.0/8",\n', ""),),
        (_EGRESS + "a_special_address_is_refused",),
    ),
    Mutant(
        "mapped-open",
        "an IPv4 address inside an IPv6 one is not looked at",
        "one egress guard",
        (Edit("processors/egress.py", "judged = forms[1] or address", "judged = address"),),
        (_EGRESS + "a_mapped_address_gets_the_verdict_of_the_address_inside",),
    ),
    Mutant(
        "one-good-answer",
        "a name passes that resolves to a public address beside a private one",
        "one egress guard",
        (
            Edit(
                "processors/egress.py",
                "    if any(classify(answer, policy) is Verdict.REFUSED for answer in answers):",
                "    if all(classify(answer, policy) is Verdict.REFUSED for answer in answers):",
            ),
        ),
        (_EGRESS + "one_bad_answer_condemns_all_and_is_not_named",),
    ),
    Mutant(
        "any-certificate",
        "certificates are not verified",
        "TLS is always verified",
        (
            Edit(
                "processors/http.py",
                "    context = ssl.create_default_context()\n",
                "    context = ssl._create_unverified_context()\n",
            ),
        ),
        (_TLS + "an_unknown_authority_is_refused",),
    ),
    Mutant(
        "redirect-is-success",
        "a redirect counts as delivered",
        "redirects are not followed",
        (
            Edit(
                "processors/webhook.py",
                'return Outcome(Kind.RETRY, "redirect", detail=detail)',
                'return Outcome(Kind.DELIVERED, "redirect", detail=detail)',
            ),
        ),
        ("tests/net/test_webhook.py::test_an_answer_becomes_its_outcome",),
    ),
)
