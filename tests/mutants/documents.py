"""Mutants of documents, of what an attempt brings about, and of rendering children."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant, statement

_KINDS = "tests/engine/test_kinds.py::test_"
_DOCUMENTS = "tests/pdf/test_documents.py::test_"
_RENDERING = "tests/pdf/test_rendering.py::test_"
_STORAGE = "tests/pdf/test_storage.py::test_"

DOCUMENTS = (
    # -- what an attempt brings about -------------------------------------------------------------
    Mutant(
        "effects-unfenced",
        "what an attempt emits is emitted though its settle was stale",
        "I3",
        (
            statement(
                "settle",
                "FROM once CROSS JOIN own o"
                " CROSS JOIN LATERAL json_array_elements(o.effects::json -> 'emit')",
                "FROM (SELECT d.org_id, u.* FROM unnest(%(ids)s::uuid[], %(verdicts)s::text[],"
                " %(effects)s::text[]) u (id, verdict, effects)"
                " JOIN outbox.delivery d ON d.id = u.id) o"
                " CROSS JOIN LATERAL json_array_elements(o.effects::json -> 'emit')",
            ),
        ),
        (_KINDS + "who_lost_its_lease_brings_about_nothing",),
    ),
    Mutant(
        "effects-in-any-order",
        "settles use deduplication keys in an order of their own, and wait for each other",
        "no deadlock",
        (statement("settle", "FROM once CROSS JOIN own o", "FROM own o"),),
        (_KINDS + "settles_with_the_same_deduplication_keys_do_not_deadlock",),
    ),
    Mutant(
        "effects-of-failures",
        "an attempt that failed emits all the same",
        "events follow from what was delivered alone",
        (
            Edit("outbox/attempt.py", "    if not delivered:\n", "    if False:\n"),
            statement(
                "settle",
                "WHERE o.verdict = 'delivered' AND o.effects IS NOT NULL\n    ORDER BY",
                "WHERE o.effects IS NOT NULL\n    ORDER BY",
            ),
        ),
        (_KINDS + "an_attempt_that_failed_brings_about_nothing",),
    ),
    Mutant(
        "effects-sink-the-batch",
        "what one attempt emits wrongly undoes the attempts that were settled with it",
        "a failure is its own",
        (
            Edit(
                "outbox/settling.py",
                "attempts.settle([one._replace(detail=None)])",
                "attempts.settle([replace(s, detail=None) for s in batch if s.effects])",
            ),
        ),
        (_KINDS + "effects_that_postgresql_refuses_undo_their_own_attempt_alone",),
    ),
    Mutant(
        "hops-uncounted",
        "hops are not counted: what processors emit feeds itself for ever",
        "no loops",
        (Edit("outbox/attempt.py", "str(hops_of(headers) + 1)", "str(hops_of(headers))"),),
        (_KINDS + "events_that_follow_are_written_with_the_settle",),
    ),
    Mutant(
        "hops-unlimited",
        "an event is performed however many hops it is away",
        "no loops",
        (Edit("outbox/worker.py", "hops_of(work.headers) > HOPS_MAX:", "False:"),),
        (_KINDS + "above_eight_hops_a_delivery_is_dead",),
    ),
    Mutant(
        "hops-forgeable",
        "a processor that sets the header itself begins to count anew",
        "no loops",
        (
            Edit(
                "outbox/attempt.py",
                '"headers": {**one.headers, HOPS_HEADER: hops}',
                '"headers": {HOPS_HEADER: hops, **one.headers}',
            ),
        ),
        (_KINDS + "events_that_follow_are_written_with_the_settle",),
    ),
    # -- documents --------------------------------------------------------------------------------
    Mutant(
        "document-outside-prefix",
        "an organization's name is a path as it stands: `a/b` lies in the folder of `a`",
        "a prefix for each organization",
        (
            Edit(
                "processors/storage.py",
                '"".join(chr(b) if b in _PLAIN else f"={b:02X}" for b in org.encode())',
                "org",
            ),
        ),
        (_STORAGE + "every_organization_has_a_prefix_of_its_own",),
    ),
    Mutant(
        "document-of-anybody",
        "who knows the hash of another organization's document reads it",
        "I14",
        (
            Edit("processors/storage.py", "    if org is None:\n", "    if True:\n"),
            statement(
                "artifact_find",
                "a.org_id IS NOT DISTINCT FROM %(org_id)s::text",
                "%(org_id)s::text IS NULL OR true",
            ),
        ),
        (_DOCUMENTS + "a_document_belongs_to_its_organization",),
    ),
    Mutant(
        "document-unnoted",
        "a document is stored before anything knows of it: a death leaves it for ever",
        "whatever is stored is named",
        (
            Edit(
                "processors/pdf.py",
                "            await self._notes.note(work.org_id, sha256)\n",
                "",
            ),
        ),
        (_DOCUMENTS + "who_lost_its_lease_leaves_bytes_that_are_swept_unless_they_are_named",),
    ),
    Mutant(
        "document-swept-early",
        "what is about to be settled is swept",
        "a stored document stays",
        (
            statement(
                "artifact_strays",
                "s.since < clock_timestamp() -",
                "s.since > '-infinity'::timestamptz -",
            ),
        ),
        (_DOCUMENTS + "who_lost_its_lease_leaves_bytes_that_are_swept_unless_they_are_named",),
    ),
    Mutant(
        "document-noted-while-removed",
        "content is noted though somebody is removing it, and goes once it is stored",
        "a stored document stays",
        (
            statement(
                "artifact_note",
                "s.removing_until IS NULL OR s.removing_until <= clock_timestamp()",
                "true",
            ),
        ),
        (_DOCUMENTS + "what_is_being_removed_is_stored_again_when_it_is_gone",),
    ),
    Mutant(
        "document-claimed-for-ever",
        "content is removed however long ago it was claimed",
        "a stored document stays",
        (Edit("processors/artifacts.py", "if clock() - began > REMOVE_S / 2:", "if False:"),),
        (_DOCUMENTS + "a_slow_store_is_left_before_the_claims_run_out",),
    ),
    Mutant(
        "document-by-the-clock",
        "a document holds the time of its attempt: the next one stores another",
        "a repeated attempt stores the same bytes",
        (
            Edit(
                "processors/pdf.py",
                "int(datetime.fromisoformat(work.occurred_at).timestamp())",
                'int(__import__("time").monotonic_ns() // 1000 % 10**9)',
            ),
        ),
        (_DOCUMENTS + "a_store_that_fails_charges_nothing_and_the_next_attempt_stores_the_same",),
    ),
    Mutant(
        "redact-leaves-document",
        "who erases by the event that told of a document leaves the document",
        "what is redacted is gone",
        (statement("redact_artifacts", " OR a.announced && %(ids)s::bigint[]", ""),),
        (_DOCUMENTS + "a_redaction_takes_the_document_and_the_event_that_told_of_it",),
    ),
    Mutant(
        "redact-takes-shared",
        "an erasure removes content that another event's document shares",
        "a stored document stays",
        (statement("artifact_strays", "AND NOT EXISTS (", "AND true OR NOT EXISTS ("),),
        (_DOCUMENTS + "content_that_another_event_names_stays",),
    ),
    # -- rendering --------------------------------------------------------------------------------
    Mutant(
        "render-with-secrets",
        "a rendering child has the worker's environment, keys and all",
        "a rendering child has nothing to tell",
        (
            Edit(
                "processors/rendering/pool.py",
                "env={**_environ(), **environ},",
                "env={**os.environ, **_environ(), **environ},",
            ),
        ),
        (_RENDERING + "a_child_has_no_secrets_no_descriptors_and_no_network",),
    ),
    Mutant(
        "render-with-network",
        "a rendering child may open sockets and start programs",
        "documents are rendered without network",
        (
            Edit(
                "processors/rendering/confinement.py",
                "if _refuse_calls(libc, os.uname().machine):",
                "if libc is None:",
            ),
        ),
        (_RENDERING + "confinement_leaves_no_socket_no_program_and_little_memory",),
    ),
)
