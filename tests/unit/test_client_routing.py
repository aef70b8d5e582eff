"""Guarantee: operations go to the leader as far as known, and away from endpoints that do not answer."""

from __future__ import annotations

from random import Random

import pytest

from raftkv.client.routing import Routing, View, parse_endpoints, view_of
from raftkv.errors import InvalidArgument
from shards.slots import slot_of

NODES = [(1, "a:1"), (2, "b:1"), (3, "c:1")]


def view(epoch: int = 1, leader: int = 1) -> View:
    return view_of(
        "c", epoch, 256, NODES, [(0, (1, 2, 3), 1), (1, (1, 2, 3), leader), (2, (2, 3), 3)], [(0, 99, 1), (100, 255, 2)]
    )


def routing(leader: int = 1) -> Routing:
    made = Routing(("seed:1",), Random(1))
    made.install(view(leader=leader))
    return made


def test_leaders_are_asked() -> None:
    made = routing()
    assert made.pick(0, 0.0) == "a:1"
    assert made.pick(100, 0.0) == "c:1"
    assert made.slot(b"{tag}x") == slot_of(b"tag", 256)


def test_the_short_way_is_what_pick_found_until_something_changes() -> None:
    made = Routing(("seed:1",), Random(1))
    assert made.route(7) == ""
    made.install(view())
    assert made.route(7) == ""
    changes = (
        lambda: made.install(view(epoch=2, leader=2)),
        lambda: made.hint(9, 3),
        lambda: made.failed("b:1", 0.0),
    )
    for change in changes:
        leader = made.pick(7, 0.0)
        assert made.route(7) == leader
        change()
        assert made.route(7) == ""
    made.pick(7, 0.0)
    known = made.route(7)
    made.hint(9, 3)
    assert made.route(7) == known == "c:1"


def test_the_short_way_is_not_open_to_suspects_and_detours() -> None:
    made = routing()
    made.pick(7, 0.0, stale=True)
    made.pick(7, 0.0, avoid=["a:1"])
    assert made.route(7) == ""
    made.failed("a:1", 0.0)
    made.pick(7, 0.0)
    assert made.route(7) == ""
    # Its time is over, but it has not answered yet: it is asked, each time anew.
    assert made.pick(7, 60.0) == "a:1"
    assert made.route(7) == ""
    made.succeeded("a:1")
    assert made.pick(7, 60.0) == made.route(7) == "a:1"


def test_a_hint_moves_the_whole_group() -> None:
    made = routing()
    made.hint(5, 2)
    assert made.pick(50, 0.0) == "b:1"
    assert made.pick(200, 0.0) == "c:1"


def test_who_has_served_an_operation_leads_the_group() -> None:
    made = routing()
    assert made.pick(5, 0.0) == "a:1"
    made.served(5, "b:1")
    assert made.pick(50, 0.0) == "b:1"
    assert made.pick(200, 0.0) == "c:1"
    made.served(5, "somewhere:1")
    assert made.pick(5, 0.0) == "b:1"


def test_a_hint_at_an_unknown_node_is_ignored() -> None:
    made = routing()
    made.hint(5, 77)
    assert made.pick(5, 0.0) == "a:1"


def test_a_failed_leader_is_left_for_a_while_longer_each_time() -> None:
    made = routing()
    made.failed("a:1", 10.0)
    assert made.pick(0, 10.0) in ("b:1", "c:1")
    assert made.pick(0, 10.2) == "a:1"
    for _ in range(8):
        made.failed("a:1", 20.0)
    assert made.pick(0, 21.0) in ("b:1", "c:1")
    assert made.pick(0, 22.1) == "a:1"
    made.failed("a:1", 30.0)
    made.succeeded("a:1")
    assert made.pick(0, 30.0) == "a:1"


def test_the_address_that_just_failed_is_avoided_even_if_it_leads() -> None:
    assert routing().pick(0, 0.0, avoid=["a:1"]) in ("b:1", "c:1")


def test_a_call_asks_every_address_before_it_asks_one_again() -> None:
    """Two nodes on the wrong side of a partition must not be asked in turns while the others wait to be asked."""
    made, asked = routing(), list[str]()
    for _ in range(4):
        asked.append(made.pick(0, 0.0, avoid=asked))
    assert sorted(asked) == ["a:1", "b:1", "c:1", "seed:1"]
    assert made.pick(0, 0.0, avoid=asked) == asked[0], "the one that failed longest ago"


def test_without_a_leader_replicas_come_first_then_other_nodes_then_seeds() -> None:
    made = Routing(("seed:1",), Random(1))
    made.install(view_of("c", 1, 256, NODES, [(2, (2, 3), 0)], [(0, 255, 2)]))
    assert {made.pick(0, 0.0) for _ in range(4)} == {"b:1", "c:1"}
    made.failed("b:1", 0.0)
    made.failed("c:1", 0.0)
    assert made.pick(0, 0.0) == "a:1"
    made.failed("a:1", 0.0)
    assert made.pick(0, 0.0) == "seed:1"


def test_when_all_have_failed_the_one_that_may_soonest_be_asked_is() -> None:
    made = routing()
    for address, now in (("a:1", 3.0), ("b:1", 1.0), ("c:1", 2.0), ("seed:1", 4.0)):
        made.failed(address, now)
    assert made.pick(0, 0.5) == "b:1"


def test_stale_reads_go_to_all_replicas_in_turns() -> None:
    made = routing()
    assert {made.pick(0, 0.0, stale=True) for _ in range(6)} == {"a:1", "b:1", "c:1"}


def test_an_older_view_is_refused_and_one_of_the_same_epoch_brings_leaders() -> None:
    made = routing()
    assert made.install(view(epoch=1, leader=3))
    assert made.pick(0, 0.0) == "c:1"
    assert made.install(view(epoch=5, leader=2))
    assert not made.install(view(epoch=4, leader=1))
    assert made.pick(0, 0.0) == "b:1"


def test_candidates_are_everybody_with_the_failed_last() -> None:
    made = routing()
    made.failed("b:1", 0.0)
    assert sorted(made.candidates(0.0)) == ["a:1", "b:1", "c:1", "seed:1"]
    assert made.candidates(0.0)[-1] == "b:1"
    assert made.endpoints() == ["a:1", "b:1", "c:1", "seed:1"]


@pytest.mark.parametrize(
    ("slots", "ranges"),
    [(300, [(0, 299, 1)]), (256, [(0, 99, 1)]), (256, [(0, 99, 1), (101, 255, 1)]), (256, [(0, 999, 1)]), (256, [])],
)
def test_contradictory_maps_are_refused(slots: int, ranges: list[tuple[int, int, int]]) -> None:
    with pytest.raises(ValueError, match="shard map"):
        view_of("c", 1, slots, NODES, [(1, (1,), 1)], ranges)


def test_endpoints_are_parsed() -> None:
    assert parse_endpoints(" a:1, b:2 ,a:1") == ("a:1", "b:2")
    assert parse_endpoints(["[::1]:7401"]) == ("[::1]:7401",)


@pytest.mark.parametrize("text", ["", " , ", "a", "a:", ":1", "a:0", "a:65536", "a:x", "a:1,b"])
def test_bad_endpoints_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_endpoints(text)
