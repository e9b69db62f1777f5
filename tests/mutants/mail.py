"""Mutants of e-mail: who is sent to and how often, what data can do, TLS, reports, erasure."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, statement

_WIRE = "processors/mail/wire.py"
_SENDING = "tests/mail/test_sending.py::test_"
_MESSAGES = "tests/mail/test_messages.py::test_"
_RECIPIENTS = "tests/mail/test_recipients.py::test_"
_TEMPLATES = "tests/mail/test_templates.py::test_"
_TRANSPORT = "tests/mail/test_transport.py::test_"
_BOUNCES = "tests/mail/test_bounces.py::test_"
_ERASURE = "tests/mail/test_erasure.py::test_"
_PROCESSOR = "processors/mail/processor.py"
_LEVEL_11 = "sql/migrations/0011_kinds.sql"

MAIL = (
    # -- who is sent to, and how often ------------------------------------------------------------
    Mutant(
        "mail-sent-again",
        "who was sent to is sent to again with those who are owed",
        "nobody is sent to after a final state",
        (
            Edit(
                "outbox/recipients.py",
                "OWED = frozenset({Recipient.QUEUED,",
                "OWED = frozenset({Recipient.SENT, Recipient.QUEUED,",
            ),
            statement(
                "email_sending",
                "r.state IN ('queued', 'sending', 'deferred', 'unknown')",
                "r.state IN ('queued', 'sending', 'deferred', 'unknown', 'sent')",
            ),
        ),
        (_SENDING + "who_is_refused_for_now_is_tried_again_alone_and_the_bytes_stay",),
    ),
    Mutant(
        "mail-redrive-sends-again",
        "a redrive sends to those who have it already",
        "nobody is sent to after a final state",
        (
            statement(
                "email_reopen",
                "r.state IN ('rejected', 'suppressed', ",
                "r.state IN ('rejected', 'suppressed', 'sent', ",
            ),
        ),
        (_SENDING + "a_redrive_offers_those_who_were_rejected_once_more_and_nobody_else",),
    ),
    Mutant(
        "mail-unknown-deferred",
        "a connection lost after the contents passes for one lost before them",
        "an effect that is not known is told as such",
        (
            Edit(
                "processors/mail/smtp.py",
                "Recipient.UNKNOWN if self._past_data else Recipient.DEFERRED",
                "Recipient.DEFERRED",
            ),
        ),
        (_SENDING + "a_connection_lost_after_the_contents_is_unknown_and_repeats_the_message_id",),
    ),
    Mutant(
        "mail-deferred-unknown",
        "a connection lost before the contents makes everybody's state unknown",
        "an effect that is not known is told as such",
        (
            Edit(
                "processors/mail/smtp.py",
                "Recipient.UNKNOWN if self._past_data else Recipient.DEFERRED",
                "Recipient.UNKNOWN",
            ),
        ),
        (_SENDING + "a_connection_lost_before_the_contents_defers",),
    ),
    Mutant(
        "mail-hold-retries-unknown",
        "with on_unknown = hold, what became unknown in this attempt is tried again",
        "on hold a person decides",
        (
            Edit(
                _PROCESSOR,
                "if Recipient.UNKNOWN in states and not self._hold:",
                "if Recipient.UNKNOWN in states:",
            ),
        ),
        (_SENDING + "on_unknown_hold_a_person_decides",),
    ),
    Mutant(
        "mail-hold-forgets-sending",
        "with on_unknown = hold, who was being sent to when the worker died is sent to again",
        "on hold a person decides",
        (
            Edit(
                _PROCESSOR,
                "if person.state is Recipient.SENDING and self._hold:",
                "if person.state is Recipient.BOUNCED and self._hold:",
            ),
        ),
        (_SENDING + "who_was_being_sent_to_when_the_worker_died_is_unknown",),
    ),
    Mutant(
        "mail-contents-uncommitted",
        "contents are sent before it is committed that somebody may have been sent to",
        "at most one extra e-mail, and none on hold",
        (
            Edit(
                _PROCESSOR,
                "called_off = not await self._emails.sending("
                "work.delivery_id, frozen.slot, numbers)",
                "called_off = False",
            ),
        ),
        (
            _SENDING + "what_is_cancelled_while_it_is_offered_is_not_sent",
            "tests/mail/test_kills.py::test_a_kill_while_sending[after:data:2-hold]",
        ),
    ),
    Mutant(
        "mail-cancelled-sent",
        "what was cancelled while it was offered is sent all the same",
        "I6",
        (
            statement(
                "email_sending",
                "(SELECT d.state FROM outbox.delivery d WHERE d.id = r.delivery_id) = 'leased'",
                "true",
            ),
        ),
        (_SENDING + "what_is_cancelled_while_it_is_offered_is_not_sent",),
    ),
    Mutant(
        "mail-made-anew",
        "every attempt sends a message made anew",
        "a message is frozen before it is sent",
        (
            Edit(
                _PROCESSOR,
                "        return frozen\n\n\ndef _unprepared(",
                "        import dataclasses\n\n"
                "        draft = await self._composer.compose(plan, work)\n"
                "        return frozen and dataclasses.replace(frozen, mime=draft.mime)\n"
                "\n\ndef _unprepared(",
            ),
        ),
        (_SENDING + "a_message_is_frozen_once_whatever_becomes_of_templates",),
    ),
    Mutant(
        "mail-any-message-id",
        "a Message-ID does not name its delivery",
        "a delivery carries one key over all its attempts",
        (
            Edit(
                "processors/mail/message.py",
                'f"<{work.delivery_id}@{sender.domain}>"',
                'f"<{work.event_id}@{sender.domain}>"',
            ),
        ),
        (_SENDING + "an_event_becomes_a_message",),
    ),
    Mutant(
        "mail-partly-rejected-delivered",
        "a message that some were refused for good counts as delivered",
        "what was not delivered lies in the dead letters",
        (
            Edit(
                _PROCESSOR,
                "if Recipient.REJECTED in states:",
                "if states == {Recipient.REJECTED}:",
            ),
        ),
        (_SENDING + "one_who_is_rejected_makes_it_dead_once_the_others_have_it",),
    ),
    # -- suppression and reports ------------------------------------------------------------------
    Mutant(
        "mail-suppressed-sent",
        "who was suppressed since the message was frozen is sent to",
        "nothing goes to a suppressed address",
        (Edit(_PROCESSOR, "        if person.suppressed:\n", "        if False:\n"),),
        (_SENDING + "who_is_suppressed_between_two_attempts_is_not_tried_again",),
    ),
    Mutant(
        "mail-suppressed-everywhere",
        "an address that one organization suppresses is suppressed for all",
        "I14",
        (
            statement(
                "email_freeze",
                "WHERE s.org_id = coalesce(g.org_id, '') AND s.address",
                "WHERE s.address",
            ),
        ),
        (_SENDING + "who_is_suppressed_gets_nothing_and_organizations_do_not_meet",),
    ),
    Mutant(
        "mail-policy-suppresses",
        "a refusal by policy (5.7.1) suppresses the address",
        "only what condemns an address suppresses it",
        (Edit("outbox/recipients.py", 'frozenset({"5.1.1",', 'frozenset({"5.7.1", "5.1.1",'),),
        (_SENDING + "the_enhanced_code_is_read",),
    ),
    Mutant(
        "bounce-suppresses-always",
        "every bounce suppresses the address, a full mailbox too",
        "only what condemns an address suppresses it",
        (
            Edit(
                "outbox/store/emails.py",
                "report.state is Recipient.BOUNCED and report.code in HARD",
                "report.state is Recipient.BOUNCED",
            ),
        ),
        (_BOUNCES + "only_what_condemns_the_address_suppresses_it",),
    ),
    Mutant(
        "bounce-any-organization",
        "an organization's reports change the messages of another",
        "I14",
        (
            statement(
                "email_report",
                "AND (%(org_id)s::text IS NULL OR e.org_id = %(org_id)s::text) OFFSET 0",
                "AND (%(org_id)s::text IS NULL OR true) OFFSET 0",
            ),
        ),
        (_BOUNCES + "reports_never_go_backwards_nor_touch_another_organization",),
    ),
    Mutant(
        "bounce-backwards",
        "an arrival that is reported late undoes a complaint",
        "reports never go backwards",
        (
            statement(
                "email_report",
                "WHEN 'delivered' THEN '{sending,sent,unknown}'",
                "WHEN 'delivered' THEN '{sending,sent,unknown,bounced,complained}'",
            ),
        ),
        (_BOUNCES + "reports_never_go_backwards_nor_touch_another_organization",),
    ),
    Mutant(
        "bounce-lost-to-settle",
        "a settle overwrites the bounce that came before it",
        "reports never go backwards",
        (
            Edit(
                _LEVEL_11,
                "          AND r.state NOT IN ('delivered', 'bounced', 'complained')\n",
                "",
            ),
        ),
        (_BOUNCES + "a_report_that_comes_before_the_settle_stays",),
    ),
    # -- what data can do -------------------------------------------------------------------------
    Mutant(
        "mail-bcc-shown",
        "the recipients of Bcc stand in the header",
        "nobody sees who gets a blind copy",
        (
            Edit(
                "processors/mail/message.py",
                "        hidden = people.take(",
                '        hidden = shown["Bcc"] = people.take(',
            ),
        ),
        (_MESSAGES + "everything_a_message_can_have",),
    ),
    Mutant(
        "mail-address-any-character",
        "an address may hold any character: a line break ends the command RCPT",
        "nothing in the data adds a recipient",
        (
            Edit(
                "processors/mail/addresses.py",
                "if _CONTROL.search(text.strip()):",
                "if not text.strip():",
            ),
            Edit(
                "processors/mail/addresses.py",
                'if not _LOCAL.fullmatch(local) or not local.isprintable() or " " in local:',
                "if not local:",
            ),
        ),
        (_MESSAGES + "what_is_not_one_address_is_refused",),
    ),
    Mutant(
        "mail-header-lines",
        "a line break in a subject begins another header",
        "e-mail headers cannot be injected",
        (
            Edit(
                "processors/mail/mime.py",
                "    value = one_line(value)\n    if value.isascii()",
                '    if "\\n" in value:\n'
                '        return f"{name}: {value}".encode("utf-8", "replace")\n'
                "    value = one_line(value)\n    if value.isascii()",
            ),
        ),
        (_MESSAGES + "no_text_adds_a_header_a_recipient_or_a_part",),
    ),
    Mutant(
        "mail-value-is-source",
        "a value is rendered as template source",
        "values are data",
        (
            Edit(
                "processors/mail/templates.py",
                "self._bounded(environment, lambda: template.render(event=event))",
                "self._bounded(environment, lambda: environment.from_string("
                "template.render(event=event)).render(event=event))",
            ),
        ),
        (_TEMPLATES + "values_are_data",),
    ),
    # -- the server -------------------------------------------------------------------------------
    Mutant(
        "smtp-one-by-one",
        "the recipients wait for the reply to the sender though the server takes flights",
        "fast: a round trip less for each message",
        (Edit(_WIRE, '"pipelining" not in self.extensions', '"pipelining" in self.extensions'),),
        (
            _TRANSPORT
            + "recipients_come_with_the_sender_where_the_server_takes_commands_in_flights",
        ),
    ),
    Mutant(
        "smtp-leaves-replies",
        "after a refused sender the replies to the recipients are left unread",
        "a connection in the middle of something is not used again",
        (
            Edit(
                _WIRE,
                "        while self._owed:\n            await self._reply()\n",
                "        pass\n",
            ),
        ),
        (
            _TRANSPORT
            + "recipients_come_with_the_sender_where_the_server_takes_commands_in_flights",
        ),
    ),
    Mutant(
        "smtp-any-reply",
        "a reply that nobody asked for passes for the next one's",
        "an effect that is not known is told as such",
        (Edit(_WIRE, "if len(self._replies) > self._owed:", "if False:"),),
        (_TRANSPORT + "a_server_that_does_not_speak_smtp_defers",),
    ),
    Mutant(
        "smtp-starttls-optional",
        "STARTTLS is used where a server offers it, and else nothing is encrypted",
        "TLS as the setting says, or no connection",
        (
            Edit(
                "processors/mail/smtp.py",
                'start_tls=server.tls == "starttls",',
                'start_tls=None if server.tls == "starttls" else False,',
            ),
        ),
        (_TRANSPORT + "without_what_the_operator_asked_for_nothing_is_sent",),
    ),
    Mutant(
        "smtp-any-certificate",
        "the SMTP server's certificate is not verified",
        "TLS is always verified",
        (Edit(_PROCESSOR, "ssl.create_default_context()", "ssl._create_unverified_context()"),),
        (_TRANSPORT + "without_what_the_operator_asked_for_nothing_is_sent",),
    ),
    # -- erasure ----------------------------------------------------------------------------------
    Mutant(
        "redact-leaves-mail",
        "a redaction leaves the message that was made of the event",
        "what is redacted is gone",
        (
            statement(
                "redact_emails",
                "DELETE FROM outbox.email e\n    WHERE ",
                "DELETE FROM outbox.email e\n    WHERE false AND ",
            ),
        ),
        (_ERASURE + "a_redaction_leaves_no_trace_of_message_recipient_or_reply",),
    ),
)
