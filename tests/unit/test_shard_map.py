"""Guarantees: a map that exists is consistent, survives the wire, and changes only into a next epoch."""

from collections import Counter
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from itertools import pairwise
from typing import Any

import msgpack
import pytest

from shards import Group, MapError, Node, ShardMap, initial_map


def nodes(count: int) -> list[Node]:
    return [Node(i, f"127.0.0.{i}:{7400 + i}", f"127.0.0.1:{7500 + i}", f"life{i}") for i in range(1, count + 1)]


@pytest.fixture
def three() -> ShardMap:
    return initial_map("c1", nodes(3), groups=4, slots=1024, replicas=3)


def test_first_map(three: ShardMap) -> None:
    assert three.epoch == 1
    assert [group.id for group in three.groups] == [0, 1, 2, 3, 4]
    assert three.group(0).voters == (1, 2, 3)
    assert all(sorted(group.voters) == [1, 2, 3] for group in three.data_groups())
    assert three.node(2).peer_address == "127.0.0.1:7502"
    assert sum(len(three.slots_of(group.id)) for group in three.data_groups()) == 1024
    assert three.slots_of(0) == ()
    assert all(three.group_of(slot) == 3 for slot in three.slots_of(3))
    assert {group.id for group in three.groups_on(1)} == {0, 1, 2, 3, 4}


def test_order_of_nodes_is_irrelevant(three: ShardMap) -> None:
    assert initial_map("c1", nodes(3)[::-1], 4, 1024, 3) == three


@pytest.mark.parametrize(("count", "groups", "replicas"), [(3, 3, 3), (5, 7, 3), (5, 4, 2), (4, 9, 3), (7, 16, 5)])
def test_replicas_and_first_voters_are_spread(count: int, groups: int, replicas: int) -> None:
    made = initial_map("c", nodes(count), groups, 256, replicas)
    held = Counter(voter for group in made.data_groups() for voter in group.voters)
    assert max(held.values()) - min(held[i] for i in range(1, count + 1)) <= 1
    first = Counter(group.voters[0] for group in made.data_groups())
    assert max(first.values()) - min(first[i] for i in range(1, count + 1)) <= 2


@pytest.mark.parametrize(("count", "voters"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 5), (9, 5)])
def test_meta_group(count: int, voters: int) -> None:
    assert len(initial_map("c", nodes(count), 2, 256, 1).group(0).voters) == voters


def test_impossible_placements() -> None:
    attempts: list[Callable[[], ShardMap]] = [
        lambda: initial_map("c", nodes(2), 1, 256, 3),
        lambda: initial_map("c", nodes(3), 0, 256, 3),
        lambda: initial_map("c", nodes(3), 257, 256, 3),
        lambda: initial_map("c", nodes(3), 1, 300, 3),
        lambda: initial_map("c", nodes(3), 1, 128, 3),
        lambda: initial_map("c", nodes(3), 1, 256, 0),
        lambda: initial_map("", nodes(3), 1, 256, 3),
    ]
    for bad in attempts:
        with pytest.raises(MapError):
            bad()


def test_ranges_cover_every_slot_once(three: ShardMap) -> None:
    ranges = three.ranges()
    owners: list[int] = []
    for first, last, group in ranges:
        assert first == len(owners)
        owners += [group] * (last - first + 1)
    assert tuple(owners) == three.owners
    assert all(one[2] != two[2] for one, two in pairwise(ranges))


def test_wire_round_trip(three: ShardMap) -> None:
    wire = msgpack.unpackb(msgpack.packb(three.to_wire()))
    assert ShardMap.from_wire(wire) == three


def test_changes_make_a_next_epoch(three: ShardMap) -> None:
    changed = three.with_owner([0, 5], 4)
    assert changed.epoch == 2
    assert changed.group_of(0) == changed.group_of(5) == 4
    assert {slot for slot in range(1024) if changed.owners[slot] != three.owners[slot]} <= {0, 5}
    assert three.epoch == 1
    bigger = changed.with_node(Node(4, "h:1", "h:2", "x")).with_group(Group(1, (1, 2, 3), (4,)))
    assert bigger.epoch == 4
    assert bigger.group(1).learners == (4,)
    assert [group.id for group in bigger.groups_on(4)] == [1]
    with pytest.raises(FrozenInstanceError):
        three.epoch = 9  # type: ignore[misc]


def test_bad_changes_are_refused(three: ShardMap) -> None:
    attempts: list[Callable[[], ShardMap]] = [
        lambda: three.with_owner([1024], 1),
        lambda: three.with_owner([-1], 1),
        lambda: three.with_owner([1], 0),
        lambda: three.with_owner([1], 99),
        lambda: three.with_group(Group(1, (1, 2, 9))),
        lambda: three.with_group(Group(1, (1, 1))),
        lambda: three.with_group(Group(1, ())),
        lambda: three.with_group(Group(1, (1,), (1,))),
        lambda: three.with_node(Node(0, "a", "b", "c")),
        lambda: three.with_node(Node(4, "", "b", "c")),
        lambda: replace(three, nodes=three.nodes + three.nodes[:1]),
        lambda: replace(three, groups=three.groups[1:]),
        lambda: replace(three, groups=three.groups + three.groups[:1]),
        lambda: replace(three, owners=three.owners[1:]),
        lambda: replace(three, epoch=0),
    ]
    for bad in attempts:
        with pytest.raises(MapError):
            bad()


def test_lookups_of_unknown_things(three: ShardMap) -> None:
    with pytest.raises(KeyError):
        three.node(9)
    with pytest.raises(KeyError):
        three.group(9)
    for slot in (-1, 1024):
        with pytest.raises(IndexError):
            three.group_of(slot)


def set_field(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(wire: dict[str, Any]) -> None:
        wire[name] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_field("slot_rule", 1),
        set_field("slot_rule", 3),
        set_field("slot_rule", None),
        set_field("slot_rule", True),
        set_field("cluster_id", None),
        set_field("cluster_id", b"x"),
        set_field("epoch", "1"),
        set_field("epoch", True),
        set_field("epoch", 2**64),
        set_field("slots", 512),
        set_field("slots", None),
        set_field("nodes", None),
        set_field("nodes", [[1]]),
        set_field("nodes", [[[], {}, None, 1.5]]),
        set_field("groups", [[0, 1, 2]]),
        set_field("groups", [[0, [[]], []]]),
        set_field("groups", {}),
        set_field("ranges", [[0, 1022, 1]]),
        set_field("ranges", [[0, 2**31 - 1, 1]]),
        set_field("ranges", [[1, 1023, 1]]),
        set_field("ranges", [[0, 1023, [1]]]),
        set_field("ranges", [[5, 3, 1]]),
        lambda wire: wire.pop("groups"),
    ],
)
def test_bad_wire_forms_are_refused(three: ShardMap, change: Callable[[dict[str, Any]], object]) -> None:
    wire = three.to_wire()
    change(wire)
    with pytest.raises(MapError):
        ShardMap.from_wire(wire)


@pytest.mark.parametrize("wire", [None, 1, "x", b"", [], [1, 2], {}, {"slot_rule": 2}, {1: 2}])
def test_other_values_are_refused(wire: object) -> None:
    with pytest.raises(MapError):
        ShardMap.from_wire(wire)
