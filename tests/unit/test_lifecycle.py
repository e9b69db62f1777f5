"""The states of a delivery: the table, its diagram, and what follows from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.errors import IllegalTransition
from outbox.lifecycle import BORN, EDGES, ENDED, LIVE, Edge, State, move

DIAGRAM = Path(__file__).parents[2] / "docs" / "lifecycle.md"
_ARROW = re.compile(r"^ *(\w+|\[\*\]) --> (\w+|\[\*\])(?:: (\w+))?$", re.MULTILINE)

TRIPLES = {
    (source.value, target.value, edge.value)
    for edge, moves in EDGES.items()
    for source, target in moves.items()
}


def drawn() -> list[tuple[str, str, str]]:
    block = DIAGRAM.read_text(encoding="utf-8").split("```mermaid")[1].split("```")[0]
    lines = [line for line in block.splitlines() if line.strip() and "-->" in line]
    arrows = [match for line in lines if (match := _ARROW.match(line))]
    assert len(arrows) == len(lines)
    return [(match[1], match[2], match[3] or "") for match in arrows]


def test_the_diagram_draws_exactly_the_edges_of_the_table() -> None:
    inner = [arrow for arrow in drawn() if "[*]" not in arrow]
    assert len(inner) == len(set(inner))
    assert set(inner) == TRIPLES


def test_the_diagram_begins_and_ends_where_the_table_does() -> None:
    assert {(target, name) for source, target, name in drawn() if source == "[*]"} == {
        (state.value, "route") for state in BORN
    }
    # A dead letter waits for a person: it has not left the system.
    assert {source for source, target, _ in drawn() if target == "[*]"} == {
        state.value for state in ENDED - {State.DEAD}
    }


def test_the_page_explains_every_state_and_edge() -> None:
    page = DIAGRAM.read_text(encoding="utf-8")
    first_cells = re.findall(r"^\| ([a-z, ]+) \|", page, re.MULTILINE)
    explained = {name for cell in first_cells for name in cell.split(", ")}
    assert explained - {"state", "edge", "route"} == {*map(str, State), *map(str, Edge)}


@given(st.sampled_from(State), st.sampled_from(Edge))
def test_moves_follow_the_table_and_every_other_pair_raises(state: State, edge: Edge) -> None:
    if state in EDGES[edge]:
        assert (state.value, move(state, edge).value, edge.value) in TRIPLES
        return
    with pytest.raises(IllegalTransition, match=f"a {state} delivery has no edge {edge}"):
        move(state, edge)


def test_every_edge_and_state_is_in_use() -> None:
    assert set(EDGES) == set(Edge)
    assert {name for source, target, _ in TRIPLES for name in (source, target)} == {
        *map(str, State)
    }
    assert set(State) == LIVE | ENDED


def test_only_redrive_and_replay_lead_back_from_an_end() -> None:
    """I6: nothing else makes an ended delivery live again."""
    back = {
        name for source, target, name in TRIPLES if State(source) in ENDED and State(target) in LIVE
    }
    assert back == {"redrive", "replay"}


def test_only_a_leased_delivery_is_delivered() -> None:
    assert {source for source, target, _ in TRIPLES if target == "delivered"} == {"leased"}


def test_cancelled_and_discarded_are_final() -> None:
    assert not {source for source, _, _ in TRIPLES} & {"cancelled", "discarded"}


def test_every_live_state_can_be_cancelled_and_reach_delivery() -> None:
    assert EDGES[Edge.CANCEL].keys() == LIVE
    reach = {State.DELIVERED}
    for _ in State:
        reach |= {State(source) for source, target, _ in TRIPLES if State(target) in reach}
    assert reach == {State.SCHEDULED, State.LEASED, State.HELD, State.DELIVERED, State.DEAD}
