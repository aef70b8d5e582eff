"""Property: plans of leaders are even over hosts, need few nodes, and leave alone what they cannot better."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from shards import Group, Node, ShardMap
from shards.leaders import Succession, balance_leaders
from shards.map import LeadersOver
from tests.plans import replanned as planned
from tests.plans import shuffled


@st.composite
def placed(draw: st.DrawFn, most_groups: int = 12) -> ShardMap:
    """Any voters of any groups over a few nodes of a few hosts."""
    ids = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8, unique=True))
    nodes = tuple(Node(i, f"{draw(st.sampled_from('abc'))}:{7400 + i}", f"p{i}:1", "") for i in ids)
    members = st.lists(st.sampled_from(ids), min_size=1, max_size=min(5, len(ids)), unique=True)
    groups = tuple(Group(number, tuple(draw(members))) for number in range(draw(st.integers(2, most_groups))))
    return ShardMap("c", 1, 256, nodes, groups, (1,) * 256)


def replanned(shard_map: ShardMap) -> ShardMap:
    return planned(shard_map, balance_leaders(shard_map))


def leaders(shard_map: ShardMap) -> list[int]:
    return [group.voters[0] for group in shard_map.groups]


def hosts_of(shard_map: ShardMap) -> list[str]:
    return [shard_map.node(node).host for node in leaders(shard_map)]


@settings(max_examples=200, deadline=None)
@given(placed(most_groups=6))
def test_hosts_lead_as_evenly_as_can_be(shard_map: ShardMap) -> None:
    def unevenness(hosts: list[str]) -> int:
        return sum(count**2 for count in Counter(hosts).values())

    options = [{shard_map.node(node).host for node in group.voters} for group in shard_map.groups]
    best = min(unevenness(list(choice)) for choice in product(*options))
    assert unevenness(hosts_of(replanned(shard_map))) == best


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 20), st.randoms(use_true_random=False))
def test_where_every_node_votes_hosts_differ_by_one_and_one_node_leads_on_each(
    hosts: int, nodes: int, groups: int, random: Random
) -> None:
    ids = range(1, hosts * nodes + 1)
    members = tuple(Node(i, f"h{i % hosts}:{7400 + i}", f"p{i}:1", "") for i in ids)
    made = tuple(Group(number, tuple(random.sample(ids, len(ids)))) for number in range(groups))
    after = replanned(ShardMap("c", 1, 256, members, made, (1,) * 256))
    counts = Counter(hosts_of(after))
    assert max(counts.values()) - min(counts[f"h{i}"] for i in range(hosts)) <= 1
    assert len(set(leaders(after))) == len(counts)


@settings(max_examples=300, deadline=None)
@given(placed(), st.sampled_from(LeadersOver), st.integers(0, 99))
def test_plans_are_stable_and_do_not_depend_on_the_order(shard_map: ShardMap, over: LeadersOver, seed: int) -> None:
    shard_map = replace(shard_map, leaders_over=over)
    plan = balance_leaders(shard_map)
    assert all(set(voters) == set(shard_map.group(group).voters) for group, voters in plan.items())
    after = replanned(shard_map)
    assert balance_leaders(after) == {}
    assert balance_leaders(shuffled(shard_map, seed)) == plan
    if over is LeadersOver.HOSTS and hosts_of(after) == hosts_of(shard_map):
        assert len(set(leaders(after))) < len(set(leaders(shard_map))) or plan == {}


@settings(max_examples=200, deadline=None)
@given(placed())
def test_survivors_of_a_host_are_asked_in_one_order(shard_map: ShardMap) -> None:
    succession = Succession(shard_map)
    orders = []
    for group in shard_map.groups:
        for leader in group.voters:
            order = succession.of(group, leader)
            assert order[0] == group.voters[0]
            assert leader in order
            assert set(order) <= set(group.voters)
            orders.append([node for node in order[1:] if shard_map.node(node).host == shard_map.node(leader).host])
    places = {(one, two) for order in orders for at, one in enumerate(order) for two in order[at + 1 :]}
    assert not places & {(two, one) for one, two in places}
