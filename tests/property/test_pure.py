"""The invariants that need no database: retry policies, judgements, edges, the fold."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import example, given
from hypothesis import strategies as st

from outbox.durations import DURATION_MAX
from outbox.history import DeliveryState, Fact, FactName, apply, carry, fold
from outbox.lifecycle import EDGES, ENDED, LIVE, Edge, State
from outbox.outcome import CHARGED, PERMANENT, Kind, Outcome
from outbox.retry import RETRY_AFTER_CAP, RetryPolicy, next_delay, parse_retry
from outbox.verdict import judge

MS = timedelta(milliseconds=1)
T0 = datetime(2030, 1, 1, tzinfo=UTC)
ID = UUID(int=1)
MILLION = 10**6

millis = st.integers(0, 10**9)
lists = st.lists(millis, min_size=1, max_size=8).map(
    lambda delays: ",".join(f"{ms}ms" for ms in sorted(delays))
)
exponentials = st.builds(
    "exp:base={}ms,factor={},cap={}ms,attempts={}".format,
    st.integers(1, 10_000),
    st.sampled_from(["1", "1.5", "2", "100"]),
    st.integers(10_000, 10**9),
    st.sampled_from([1, 2, 12, MILLION]),
)
jitters = st.sampled_from(["", ",jitter=0", ",jitter=0.5", ",jitter=1"])
policies = st.builds(lambda text, jitter: parse_retry(text + jitter), lists | exponentials, jitters)
attempts = st.integers(1, 20) | st.sampled_from([10**3, MILLION - 1, MILLION, MILLION + 1])
afters = st.none() | st.integers(-(10**6), 10**9).map(lambda s: timedelta(seconds=s))
shares = st.floats(0, 1, exclude_max=True)


@given(policies, attempts, afters, shares)
@example(parse_retry("exp:base=1ms,factor=100,cap=3650d,attempts=1000000"), MILLION - 1, None, 0.9)
def test_i05_the_due_time_is_policy_or_retry_after_plus_jitter(
    policy: RetryPolicy, attempt: int, after: timedelta | None, share: float
) -> None:
    delay = next_delay(policy, attempt, after=after, random=lambda: share)
    if attempt >= policy.attempts_max:
        assert delay is None
        return
    assert delay is not None
    base = policy.base_delay(attempt)
    asked = max(timedelta(), min(after or timedelta(), RETRY_AFTER_CAP))
    jitter = delay - max(base, asked)
    assert timedelta() <= jitter <= base * policy.jitter + MS
    assert abs(jitter - base * policy.jitter * share) <= MS


@given(policies, attempts)
def test_i05_base_delays_never_fall_and_never_overflow(policy: RetryPolicy, attempt: int) -> None:
    assert timedelta() <= policy.base_delay(attempt) <= policy.base_delay(attempt + 1)
    assert policy.base_delay(MILLION) <= DURATION_MAX


@given(policies, st.lists(st.sampled_from(Kind), min_size=1, max_size=40), shares)
def test_i04_a_budget_holds_as_many_charged_attempts_as_the_policy_says(
    policy: RetryPolicy, kinds: list[Kind], share: float
) -> None:
    charged = 0
    ended = None
    for kind in kinds:
        verdict = judge(Outcome(kind, "x"), policy, charged + 1, None, lambda: share)
        assert verdict.charged == (kind in CHARGED)
        charged += verdict.charged
        assert charged <= policy.attempts_max
        if verdict.name != "retry":
            ended = verdict.name
            break
        assert charged < policy.attempts_max
    assert charged < policy.attempts_max or ended in ("dead", "delivered")


@given(policies, st.sampled_from(Kind), st.integers(0, 10**6), afters, shares)
def test_i04_i05_nothing_is_tried_past_its_age(
    policy: RetryPolicy, kind: Kind, left_s: int, after: timedelta | None, share: float
) -> None:
    left = timedelta(seconds=left_s)
    verdict = judge(Outcome(kind, "x", after=after), policy, 1, left, lambda: share)
    assert verdict.delay is None or verdict.delay < left
    assert (verdict.name == "delivered") == (kind is Kind.DELIVERED)
    assert kind not in PERMANENT or verdict.name == "dead"


@given(st.lists(st.sampled_from(Edge), max_size=30), st.sampled_from(sorted(LIVE)))
def test_i06_only_redrive_and_replay_revive_what_has_ended(edges: list[Edge], born: State) -> None:
    state = born
    for edge in edges:
        target = EDGES[edge].get(state)
        if target is None:
            continue
        if state in ENDED and target in LIVE:
            assert edge in (Edge.REDRIVE, Edge.REPLAY)
            assert state not in (State.CANCELLED, State.DISCARDED)
        assert edge is not Edge.LEASE or state is State.SCHEDULED
        state = target


# -- the fold -------------------------------------------------------------------------------------

NEXT = {
    State.SCHEDULED: [
        *("attempt_failed", "delivered", "dead", "lease_expired", "replayed", "cancelled"),
        *("expired", "held", "released"),
    ],
    State.HELD: ["released", "cancelled", "expired", "dead"],
    State.DELIVERED: ["replayed"],
    State.DEAD: ["redriven", "replayed", "discarded"],
}


@st.composite
def stories(draw: st.DrawFn) -> list[Fact]:
    """A history that can be: what follows is drawn from what may."""
    first = draw(st.sampled_from([FactName.ROUTED, FactName.REPLAYED]))
    facts = [Fact(first, T0, ID, due_at=T0)]
    state = apply(None, facts[0])
    for second in range(1, draw(st.integers(1, 20))):
        names = NEXT.get(state.state)
        if not names:
            break
        name = FactName(draw(st.sampled_from(names)))
        at = T0 + timedelta(seconds=second)
        facts.append(Fact(name, at, ID, charged=draw(st.booleans()), reason=f"r{second}"))
        state = apply(state, facts[-1])
    return facts


def whole(facts: list[Fact], start: DeliveryState | None = None) -> DeliveryState:
    state = fold(facts, start)
    assert state is not None
    return state


@given(stories(), st.data())
def test_i13_the_fold_is_the_same_in_pieces_and_across_carrying(
    facts: list[Fact], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(1, len(facts)))
    early = whole(facts[:cut])
    assert whole(facts[cut:], early) == whole(facts)
    assert whole([carry(early, facts[cut - 1].at), *facts[cut:]]) == whole(facts)


@given(stories())
def test_i04_i13_the_fold_counts_attempts_and_expiries_of_the_present_budget(
    facts: list[Fact],
) -> None:
    attempts = expiries = 0
    state = None
    for fact in facts:
        expired = fact.name is FactName.LEASE_EXPIRED
        attempts += fact.charged and not expired
        expiries += fact.charged and expired
        if state is not None and state.state in ENDED and fact.name != "discarded":
            attempts = expiries = 0
        state = apply(state, fact)
        if fact is facts[0]:
            attempts = expiries = 0
        assert (state.attempts, state.expiries) == (attempts, expiries)
        assert (state.due_at is None) == (state.state in ENDED)
