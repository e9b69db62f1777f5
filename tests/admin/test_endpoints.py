"""Endpoints: what is stored, who can read it, and what a change means for what is owed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from outbox.addressbook import open_endpoint
from outbox.errors import ConfigurationError, KeyMissing, NotFound, UsageError
from outbox.secrets import KeyRing
from outbox.signature import format_private_key, parse_public_key, parse_secret, public_key
from outbox.store import endpoints as store
from outbox.store.deliveries import Aligned, align
from outbox.store.endpoints import EndpointSpec, add_endpoint, load_endpoint, rotate_secret
from outbox.store.subscriptions import Rule, pause_subscription
from outbox.work import SigningKey
from tests.admin.helpers import RING, URL, Shop

DAY = timedelta(days=1)


def test_a_new_endpoint_signs_with_the_secret_that_was_shown(shop: Shop) -> None:
    added = shop.endpoint(headers={"Authorization": "Bearer x"}, timeout=timedelta(seconds=3))
    opened = open_endpoint(load_endpoint(shop.connection, added.id, "acme"), RING)
    assert added.secret is not None
    assert added.public_key is None
    assert opened.keys == (SigningKey("hmac", parse_secret(added.secret)),)
    assert opened.headers == {"Authorization": "Bearer x"}
    assert (opened.url, opened.org_id, opened.timeout) == (URL, "acme", timedelta(seconds=3))


def test_of_an_ed25519_key_only_the_public_half_is_shown(shop: Shop) -> None:
    added = shop.endpoint(signing="ed25519")
    [key] = open_endpoint(load_endpoint(shop.connection, added.id, None), RING).keys
    assert added.secret is None
    assert added.public_key is not None
    assert public_key(key.material) == parse_public_key(added.public_key)


@pytest.mark.parametrize("signing", ["hmac", "ed25519"])
def test_an_existing_key_is_taken_over(shop: Shop, signing: str) -> None:
    secret = "whsec_" + "QUJD" * 8 if signing == "hmac" else format_private_key(bytes(32))
    added = shop.endpoint(signing=signing, secret=secret)
    [key] = open_endpoint(load_endpoint(shop.connection, added.id, None), RING).keys
    assert key.material == (b"ABC" * 8 if signing == "hmac" else bytes(32))


@pytest.mark.parametrize("secret", ["whsec_QUJD", "whsec_!", "whsec_" + "QUJD" * 30])
def test_a_secret_too_short_too_long_or_no_base64_is_refused(shop: Shop, secret: str) -> None:
    with pytest.raises(UsageError):
        shop.endpoint(secret=secret)
    assert shop.one("SELECT count(*) FROM outbox.endpoint") == 0


def test_what_is_sealed_opens_neither_elsewhere_nor_with_another_key(shop: Shop) -> None:
    first, second = shop.endpoint(headers={"X": "1"}), shop.endpoint(headers={"X": "2"})
    stored = load_endpoint(shop.connection, first.id, None)
    other = load_endpoint(shop.connection, second.id, None)
    for moved in (
        replace(stored, org_id="rival"),
        replace(stored, keys=(replace(stored.keys[0], id=other.keys[0].id),)),
        replace(stored, headers_sealed=other.headers_sealed),
    ):
        with pytest.raises(ConfigurationError):
            open_endpoint(moved, RING)
    with pytest.raises(ConfigurationError):
        open_endpoint(stored, KeyRing([bytes(32)]))


def test_a_key_that_does_not_open_what_is_stored_seals_nothing_new(shop: Shop) -> None:
    added = shop.endpoint()
    wrong = KeyRing([b"w" * 32])
    with pytest.raises(KeyMissing):
        add_endpoint(shop.connection, EndpointSpec(URL, "acme", Rule(("*",))), wrong)
    with pytest.raises(KeyMissing):
        rotate_secret(shop.connection, added.id, wrong)
    assert shop.one("SELECT count(*) FROM outbox.secret") == 1


def test_a_new_first_key_seals_as_long_as_the_former_one_is_kept(shop: Shop) -> None:
    shop.endpoint()
    rotated = KeyRing([b"n" * 32, bytes(range(32))])
    added = add_endpoint(shop.connection, EndpointSpec(URL, "acme", Rule(("*",))), rotated)
    [key] = open_endpoint(load_endpoint(shop.connection, added.id, None), rotated).keys
    assert added.secret is not None
    assert key.material == parse_secret(added.secret)


def test_no_secret_lies_in_the_database_in_the_clear(shop: Shop) -> None:
    added = shop.endpoint(headers={"Authorization": "Bearer of-news"})
    assert added.secret is not None
    for row in shop.rows("SELECT n::text || s::text FROM outbox.endpoint n, outbox.secret s"):
        assert b"Bearer of-news".hex() not in row[0]
        assert parse_secret(added.secret).hex() not in row[0]


def test_endpoint_subscription_and_first_revision_appear_together(shop: Shop) -> None:
    rule = Rule(("orders.*", "a.b"), "$.total > 1", "1s,5s", timedelta(hours=36), 2)
    added = shop.endpoint(rule=rule, concurrency=7, rate_per_s=2.5)
    [config] = shop.rows(
        "SELECT s.lane, r.revision, r.config FROM outbox.subscription s"
        " JOIN outbox.subscription_revision r ON r.subscription_id = s.id"
    )
    lane, revision, told = config
    given = {name: value for name, value in told.items() if value not in (None, [])}
    assert (lane, revision, given) == (
        added.id,
        1,
        {
            "kind": "webhook",
            "endpoint_id": added.id,
            "org_id": "acme",
            "all_orgs": False,
            "patterns": ["orders.*", "a.b"],
            "filter": "$.total > 1",
            "retry": "1s,5s",
            "max_age_s": 129600,
            "body_format": 2,
            "state": "active",
        },
    )
    [listed] = store.list_endpoints(shop.connection)
    assert (listed["concurrency"], listed["rate_per_s"]) == (7, 2.5)
    assert listed["subscriptions"][0]["body"] == "database-webhook"


@pytest.mark.parametrize(
    "wrong",
    [
        {"concurrency": 0},
        {"concurrency": 100_001},
        {"rate_per_s": 0.0},
        {"rate_per_s": float("nan")},
        {"timeout": timedelta()},
        {"timeout": timedelta(minutes=6)},
        {"org_id": ""},
        {"org_id": "x" * 201},
    ],
    ids=str,
)
def test_limits_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        EndpointSpec(**{"url": URL, "org_id": "acme", "rule": Rule(("*",)), **wrong})


def test_a_bad_filter_leaves_nothing_behind(shop: Shop) -> None:
    with pytest.raises(UsageError):
        shop.endpoint(rule=Rule(("*",), filter="$.total >"))
    assert shop.one("SELECT count(*) FROM outbox.endpoint") == 0


# -- rotation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("signing", ["hmac", "ed25519"])
def test_after_a_rotation_both_keys_sign_until_the_overlap_is_over(
    shop: Shop, signing: str
) -> None:
    added = shop.endpoint(signing=signing)
    rotated = rotate_secret(shop.connection, added.id, RING, overlap=timedelta(hours=2))
    new, old = load_endpoint(shop.connection, added.id, None).keys
    assert {new.kind, old.kind} == {signing}
    assert new.expires_in_s is None
    assert old.expires_in_s is not None
    assert 7100 < old.expires_in_s <= 7200
    assert (rotated.secret is None) == (signing == "ed25519")
    assert rotated.secret != added.secret or signing == "ed25519"
    assert len(open_endpoint(load_endpoint(shop.connection, added.id, None), RING).keys) == 2


def test_a_rotation_bumps_the_revision_by_which_daemons_notice(shop: Shop) -> None:
    added = shop.endpoint()
    rotate_secret(shop.connection, added.id, RING)
    assert load_endpoint(shop.connection, added.id, None).revision == 2


def test_without_overlap_the_old_keys_end_now(shop: Shop) -> None:
    added = shop.endpoint()
    rotate_secret(shop.connection, added.id, RING)
    rotate_secret(shop.connection, added.id, RING, overlap=timedelta())
    assert len(load_endpoint(shop.connection, added.id, None).keys) == 1


def test_a_second_rotation_never_lengthens_the_life_of_the_first_key(shop: Shop) -> None:
    added = shop.endpoint()
    rotate_secret(shop.connection, added.id, RING, overlap=timedelta(hours=1))
    rotate_secret(shop.connection, added.id, RING, overlap=timedelta(hours=9))
    lives = [key.expires_in_s for key in load_endpoint(shop.connection, added.id, None).keys]
    assert lives[0] is None
    assert lives[1] is not None
    assert lives[2] is not None
    assert lives[2] <= 3600 < lives[1]


def test_the_keys_that_sign_together_are_limited(shop: Shop) -> None:
    added = shop.endpoint()
    for _ in range(store.KEYS_MAX - 1):
        rotate_secret(shop.connection, added.id, RING)
    with pytest.raises(UsageError, match="--overlap 0s"):
        rotate_secret(shop.connection, added.id, RING)
    rotate_secret(shop.connection, added.id, RING, overlap=timedelta())
    assert len(load_endpoint(shop.connection, added.id, None).keys) == 1


# -- pause and resume -----------------------------------------------------------------------------


def test_a_pause_holds_first_attempts_retries_and_leases_that_nobody_started(shop: Shop) -> None:
    added = shop.endpoint()
    shop.emit(n=2)
    shop.attempt("retry")
    shop.emit(n=3)
    leases = shop.route(1)
    changed = store.pause_endpoint(shop.connection, added.id)
    assert (changed.was, changed.state) == ("active", "paused")
    assert changed.deliveries == Aligned(held=5)
    assert shop.states() == {"held": 5}
    assert shop.one("SELECT min(attempts) * 10 + max(attempts) FROM outbox.delivery") == 1
    assert shop.take(leases) == set()


def test_a_pause_leaves_a_started_attempt_to_its_worker(shop: Shop) -> None:
    added = shop.endpoint()
    shop.emit(n=2)
    leases = shop.route(2)
    shop.take(leases)
    assert store.pause_endpoint(shop.connection, added.id).deliveries == Aligned()
    assert shop.settle(leases[:1], "delivered") == {leases[0][0]}
    assert shop.settle(leases[1:], "retry") == {leases[1][0]}
    assert shop.lease() == []


def test_events_routed_during_a_pause_are_held_and_released_by_the_resume(shop: Shop) -> None:
    added = shop.endpoint()
    store.pause_endpoint(shop.connection, added.id)
    shop.emit(n=2)
    assert shop.route(10) == []
    assert shop.states() == {"held": 2}
    resumed = store.resume_endpoint(shop.connection, added.id)
    assert resumed.deliveries == Aligned(released=2)
    assert len(shop.lease()) == 2


def test_nothing_paused_is_leased(shop: Shop) -> None:
    added = shop.endpoint()
    shop.emit(n=3)
    shop.route()
    store.pause_endpoint(shop.connection, added.id)
    assert shop.lease() == []


def test_maximum_age_stands_still_while_held(shop: Shop) -> None:
    added = shop.endpoint(rule=Rule(("*",), max_age=DAY))
    shop.emit()
    shop.route()
    store.pause_endpoint(shop.connection, added.id)
    before = shop.one("SELECT age_limit_at FROM outbox.delivery")
    shop.connection.execute("UPDATE outbox.delivery SET held_at = held_at - interval '3 days'")
    store.resume_endpoint(shop.connection, added.id)
    after = shop.one("SELECT age_limit_at FROM outbox.delivery")
    assert 3 * DAY <= after - before < 3 * DAY + timedelta(minutes=5)
    assert shop.facts(shop.one("SELECT id FROM outbox.delivery")) == [
        ("held", "paused"),
        ("released", "resumed"),
    ]


def test_batches_of_any_size_reach_everything(shop: Shop) -> None:
    added = shop.endpoint()
    shop.emit(n=7)
    shop.attempt("retry")
    shop.emit(n=8)
    shop.route()
    shop.connection.execute("UPDATE outbox.endpoint SET state = 'paused'")
    assert align(shop.connection, added.id, rows_max=2) == Aligned(held=15)
    shop.connection.execute("UPDATE outbox.endpoint SET state = 'active'")
    assert align(shop.connection, added.id, rows_max=2) == Aligned(released=15)
    shop.connection.execute("UPDATE outbox.endpoint SET state = 'removed'")
    leases = [(i, 5) for (i,) in shop.rows("SELECT id FROM outbox.delivery LIMIT 5")]
    shop.connection.execute(
        "UPDATE outbox.delivery SET state = 'leased', token = 5, lease_until = 'tomorrow'"
        " WHERE id = ANY (%s)",
        [[i for i, _ in leases]],
    )
    assert align(shop.connection, added.id, rows_max=2) == Aligned(cancelled=15)


def test_a_paused_subscription_holds_its_own_deliveries_alone(shop: Shop) -> None:
    from outbox.store.subscriptions import add_subscription

    added = shop.endpoint()
    second = add_subscription(shop.connection, added.id, Rule(("orders.*",)))
    shop.emit(n=3)
    shop.route()
    moved = pause_subscription(shop.connection, second)
    assert moved.deliveries == Aligned(held=3)
    held = "SELECT DISTINCT subscription_id FROM outbox.delivery WHERE state = 'held'"
    assert shop.one(held) == second


def test_a_resumed_endpoint_keeps_what_a_paused_subscription_holds(shop: Shop) -> None:
    added = shop.endpoint()
    shop.emit()
    shop.route()
    pause_subscription(shop.connection, added.subscription_id)
    store.pause_endpoint(shop.connection, added.id)
    assert store.resume_endpoint(shop.connection, added.id).deliveries == Aligned()
    assert shop.states() == {"held": 1}


def test_a_resume_leaves_alone_what_an_adoption_holds(shop: Shop) -> None:
    added = shop.endpoint()
    shop.connection.execute("UPDATE outbox.installation SET hold_event_id = 1000")
    shop.emit()
    shop.route()
    store.pause_endpoint(shop.connection, added.id)
    assert store.resume_endpoint(shop.connection, added.id).deliveries == Aligned()
    assert shop.one("SELECT held_reason FROM outbox.delivery") == "adopted"


def test_a_disabled_endpoint_is_resumed_and_not_paused(shop: Shop) -> None:
    added = shop.endpoint()
    shop.emit()
    shop.route()
    shop.connection.execute("UPDATE outbox.endpoint SET state = 'disabled', state_reason = 'gone'")
    assert store.pause_endpoint(shop.connection, added.id).state == "disabled"
    assert shop.one("SELECT held_reason FROM outbox.delivery") == "disabled"
    assert store.resume_endpoint(shop.connection, added.id).deliveries == Aligned(released=1)
    assert store.show_endpoint(shop.connection, added.id, None)["state_reason"] is None


def test_a_resume_that_was_cut_off_is_finished_by_the_next(shop: Shop) -> None:
    added = shop.endpoint()
    shop.emit(n=3)
    shop.route()
    store.pause_endpoint(shop.connection, added.id)
    shop.connection.execute("UPDATE outbox.endpoint SET state = 'active'")
    again = store.resume_endpoint(shop.connection, added.id)
    assert (again.was, again.deliveries) == ("active", Aligned(released=3))


# -- remove ---------------------------------------------------------------------------------------


def test_a_removal_cancels_everything_owed_and_forgets_the_secrets(shop: Shop) -> None:
    added = shop.endpoint(headers={"X": "1"})
    shop.emit(n=2)
    store.pause_endpoint(shop.connection, added.id)
    shop.route()
    store.resume_endpoint(shop.connection, added.id)
    shop.emit(n=4)
    leases = shop.route(2)
    shop.take(leases)
    changed = store.remove_endpoint(shop.connection, added.id)
    assert changed.deliveries == Aligned(cancelled=6)
    assert shop.states() == {}
    assert shop.settle(leases, "delivered") == set()
    assert shop.one("SELECT count(*) FROM outbox.secret") == 0
    assert shop.one("SELECT headers_sealed FROM outbox.endpoint") is None
    assert shop.one("SELECT DISTINCT state FROM outbox.subscription") == "removed"
    revisions = "SELECT array_agg(revision ORDER BY revision) FROM outbox.subscription_revision"
    assert shop.one(revisions) == [1, 2]
    shop.emit()
    shop.route(10)
    assert shop.states() == {}


def test_a_removed_endpoint_is_removed_again_but_nothing_else(shop: Shop) -> None:
    added = shop.endpoint()
    store.remove_endpoint(shop.connection, added.id)
    assert store.remove_endpoint(shop.connection, added.id).was == "removed"
    for action in (store.pause_endpoint, store.resume_endpoint):
        with pytest.raises(NotFound):
            action(shop.connection, added.id)
    with pytest.raises(NotFound):
        rotate_secret(shop.connection, added.id, RING)
    assert store.list_endpoints(shop.connection) == []
    assert len(store.list_endpoints(shop.connection, removed=True)) == 1


# -- scope ----------------------------------------------------------------------------------------


def test_another_organization_reads_and_changes_nothing(shop: Shop) -> None:
    added = shop.endpoint("acme")
    everyone = shop.endpoint(None)
    shop.emit(n=2)
    shop.route()
    before = shop.rows("SELECT n, s FROM outbox.endpoint n JOIN outbox.subscription s ON true")
    for target in (added.id, everyone.id):
        for action in (store.pause_endpoint, store.resume_endpoint, store.remove_endpoint):
            with pytest.raises(NotFound):
                action(shop.connection, target, "rival")
        with pytest.raises(NotFound):
            rotate_secret(shop.connection, target, RING, org="rival")
        with pytest.raises(NotFound):
            store.show_endpoint(shop.connection, target, "rival")
    assert store.list_endpoints(shop.connection, "rival") == []
    after = shop.rows("SELECT n, s FROM outbox.endpoint n JOIN outbox.subscription s ON true")
    assert after == before
    assert shop.states() == {"scheduled": 4}


def test_one_organizations_pause_leaves_the_others_deliveries(shop: Shop) -> None:
    added, _ = shop.endpoint("acme"), shop.endpoint("rival")
    shop.emit("acme", 2)
    shop.emit("rival", 3)
    shop.route()
    store.pause_endpoint(shop.connection, added.id, "acme")
    held = "SELECT org_id, state, count(*) FROM outbox.delivery GROUP BY 1, 2 ORDER BY 1"
    assert shop.rows(held) == [("acme", "held", 2), ("rival", "scheduled", 3)]


def test_a_listing_goes_on_after_an_id(shop: Shop) -> None:
    ids = [shop.endpoint().id for _ in range(3)]
    assert [row["id"] for row in store.list_endpoints(shop.connection, after=ids[0])] == ids[1:]


def test_random_bytes_are_an_argument(shop: Shop) -> None:
    spec = EndpointSpec(URL, "acme", Rule(("*",)))
    added = add_endpoint(shop.connection, spec, RING, random_bytes=lambda n: b"k" * n)
    assert added.secret is not None
    assert parse_secret(added.secret) == b"k" * 32
    rotated = rotate_secret(shop.connection, added.id, RING, random_bytes=lambda n: b"m" * n)
    assert rotated.secret is not None
    assert parse_secret(rotated.secret) == b"m" * 32
    assert datetime.fromisoformat(rotated.old_valid_until) > datetime.now(UTC)
