"""Guarantee: leaders are spread over machines or over nodes, as the map says, and stay together when one dies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from shards import Group, Node, ShardMap, initial_map
from shards.leaders import Succession, balance_leaders
from shards.map import LeadersOver, MapError
from shards.planner import drain_node, place_group


def map_of(hosts: str, voters: Mapping[int, Sequence[int]]) -> ShardMap:
    """Node i lives on the host that the i-th letter names."""
    nodes = tuple(Node(i, f"{host}:{7400 + i}", f"{host}:{7500 + i}", "") for i, host in enumerate(hosts, 1))
    return ShardMap("c", 1, 256, nodes, tuple(Group(group, tuple(ids)) for group, ids in voters.items()), (1,) * 256)


def led(shard_map: ShardMap) -> list[int]:
    plan = balance_leaders(shard_map)
    return [plan.get(group.id, group.voters)[0] for group in shard_map.groups]


def test_on_one_machine_one_node_leads_all() -> None:
    shard_map = map_of("aaa", {0: (1, 2, 3), 1: (2, 3, 1), 2: (3, 1, 2)})
    assert led(shard_map) == [1, 1, 1]
    assert led(replace(shard_map, leaders_over=LeadersOver.NODES)) == [1, 2, 3]


def test_what_is_together_stays_where_it_is() -> None:
    assert balance_leaders(map_of("aaa", {0: (2, 1, 3), 1: (2, 3, 1)})) == {}


def test_machines_lead_evenly_each_by_the_node_that_votes_in_most() -> None:
    shard_map = map_of("aabb", {0: (1, 3, 4), 1: (2, 1, 3), 2: (1, 2, 4), 3: (2, 3, 4)})
    plan = balance_leaders(shard_map)
    after = replace(shard_map, groups=tuple(replace(g, voters=plan.get(g.id, g.voters)) for g in shard_map.groups))
    leaders = [group.voters[0] for group in after.groups]
    assert sum(node in (1, 2) for node in leaders) == 2
    assert len(set(leaders)) == 2
    assert balance_leaders(after) == {}


def test_hosts_are_told_apart_as_they_are_written_but_for_case() -> None:
    nodes = [Node(1, "Box:1", "box:2", ""), Node(2, "box:3", "box:4", ""), Node(3, "[::1]:1", "[::1]:2", "")]
    assert [node.host for node in nodes] == ["box", "box", "[::1]"]


def test_a_new_cluster_of_one_machine_has_its_leaders_on_one_node() -> None:
    nodes = [Node(i, f"127.0.0.1:{7400 + i}", f"127.0.0.1:{7500 + i}", "") for i in (1, 2, 3)]
    first = initial_map("c", nodes, 4)
    assert [group.voters[0] for group in first.groups] == [1] * 5
    assert balance_leaders(first) == {}


def test_a_new_group_is_led_where_the_others_of_the_machine_are() -> None:
    shard_map = map_of("aaa", {0: (2, 1, 3), 1: (2, 3, 1)})
    assert place_group(shard_map, 3)[0] == 2
    assert place_group(replace(shard_map, leaders_over=LeadersOver.NODES), 3)[0] == 1


def test_the_groups_of_a_node_that_is_drained_stay_together() -> None:
    shard_map = map_of("aaaa", {0: (1, 2, 3), 1: (1, 2, 3), 2: (1, 2, 3)})
    assert {voters[0] for voters in drain_node(shard_map, 1).values()} == {2}


def test_all_groups_of_a_machine_pass_through_its_nodes_in_one_order() -> None:
    shard_map = map_of("aaab", {0: (1, 2, 3), 1: (1, 3, 2), 2: (1, 4, 3)})
    succession = Succession(shard_map)
    assert [succession.of(group, 2) for group in shard_map.groups] == [(1, 3, 2), (1, 3, 2), (1, 3)]
    assert succession.of(shard_map.group(2), 4) == (1, 3, 4), "if none of the machine is up, the leader stays"


def test_over_nodes_only_the_preferred_one_is_better_than_the_leader() -> None:
    shard_map = replace(map_of("aaa", {0: (1,), 1: (1, 2, 3)}), leaders_over=LeadersOver.NODES)
    assert Succession(shard_map).of(shard_map.group(1), 3) == (1, 3)


def test_the_setting_survives_the_wire_and_early_maps_have_the_default() -> None:
    shard_map = map_of("aaa", {0: (1,), 1: (1, 2, 3)}).with_leaders_over(LeadersOver.NODES)
    assert shard_map.epoch == 2
    wire = shard_map.to_wire()
    assert ShardMap.from_wire(wire) == shard_map
    del wire["leaders_over"]
    assert ShardMap.from_wire(wire).leaders_over is LeadersOver.HOSTS
    for wrong in ("racks", 7, None, ["nodes"]):
        with pytest.raises(MapError, match="hosts or nodes"):
            ShardMap.from_wire({**wire, "leaders_over": wrong})
