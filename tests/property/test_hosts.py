"""Property: two replicas of a group are on one host only where there is no choice, whatever plans are made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shards import Group, Node, ShardMap, initial_map
from shards.planner import PlanError, balance_nodes, drain_node, meta_members, place_group
from tests.plans import held, replanned, shuffled

Plan = Mapping[int, tuple[int, ...]]


def nodes_of(hosts: Iterable[str]) -> tuple[Node, ...]:
    return tuple(Node(i, f"{host}:{7400 + i}", f"p{i}:1", "") for i, host in enumerate(hosts, 1))


@st.composite
def machines(draw: st.DrawFn, least: int = 3) -> tuple[Node, ...]:
    """Nodes on a few hosts, which have one or several each, in any order."""
    return nodes_of(draw(st.lists(st.sampled_from("abcde"), min_size=least, max_size=9)))


@st.composite
def alike(draw: st.DrawFn) -> tuple[Node, ...]:
    """As many nodes on each host."""
    hosts, each = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    order = [host for host in "abcd"[:hosts] for _ in range(each)]
    draw(st.randoms(use_true_random=False)).shuffle(order)
    return nodes_of(order)


@st.composite
def placed(draw: st.DrawFn) -> ShardMap:
    """Any voters of any groups, wherever they are."""
    nodes = draw(machines())
    ids = [node.id for node in nodes]
    members = st.lists(st.sampled_from(ids), min_size=1, max_size=min(5, len(ids)), unique=True)
    groups = []
    for number in range(draw(st.integers(2, 10))):
        voters = draw(members)
        learners = [one for one in draw(st.lists(st.sampled_from(ids), max_size=1)) if one not in voters]
        groups.append(Group(number, tuple(voters), tuple(learners)))
    return ShardMap("c", 1, 256, nodes, tuple(groups), (1,) * 256)


def shared(nodes: Iterable[Node], voters: Iterable[int]) -> int:
    """Pairs of ``voters`` on one host."""
    hosts = {node.id: node.host for node in nodes}
    return sum(count * (count - 1) // 2 for count in Counter(hosts[voter] for voter in voters).values())


def fewest(nodes: Iterable[Node], voters: int) -> int:
    """The fewest pairs that as many voters can have: each goes to a host with the fewest that has a node left."""
    left = Counter(node.host for node in nodes)
    on: Counter[str] = Counter()
    for _ in range(voters):
        host = min((one for one in left if on[one] < left[one]), key=lambda one: on[one])
        on[host] += 1
    return sum(count * (count - 1) // 2 for count in on.values())


@settings(max_examples=150, deadline=None)
@given(machines(), st.integers(1, 20), st.integers(1, 5))
def test_a_new_cluster_keeps_replicas_apart(nodes: tuple[Node, ...], groups: int, replicas: int) -> None:
    assume(replicas <= len(nodes))
    made = initial_map("c", nodes, groups, 256, replicas)
    for group in made.data_groups():
        assert len(set(group.voters)) == replicas
        assert shared(nodes, group.voters) == fewest(nodes, replicas)
    assert initial_map("c", nodes[::-1], groups, 256, replicas) == made


@settings(max_examples=150, deadline=None)
@given(alike(), st.integers(1, 20), st.integers(1, 5))
def test_hosts_that_are_alike_are_filled_evenly_by_a_new_cluster_and_one_by_one(
    nodes: tuple[Node, ...], groups: int, replicas: int
) -> None:
    assume(replicas <= len(nodes))
    made = initial_map("c", nodes, groups, 256, replicas)
    assert max(held(made).values()) - min(held(made).values()) <= 1
    assert balance_nodes(made) == {}
    grown = initial_map("c", nodes, 1, 256, replicas)
    for group in range(2, groups + 1):
        grown = grown.with_group(Group(group, place_group(grown, replicas)))
    assert max(held(grown).values()) - min(held(grown).values()) <= 1
    assert balance_nodes(grown) == {}


def test_where_all_nodes_share_a_host_or_none_does_nothing_is_different() -> None:
    for hosts in ("aaaaa", "abcde"):
        made = initial_map("c", nodes_of(hosts), 5, 256, 3)
        assert [sorted(group.voters) for group in made.data_groups()] == [
            [1, 2, 3], [1, 4, 5], [2, 3, 4], [1, 2, 5], [3, 4, 5],
        ]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(placed(), st.integers(1, 5))
def test_a_new_group_is_apart(shard_map: ShardMap, replicas: int) -> None:
    assume(replicas <= len(shard_map.nodes))
    assert shared(shard_map.nodes, place_group(shard_map, replicas)) == fewest(shard_map.nodes, replicas)


@settings(max_examples=200, deadline=None)
@given(placed(), st.integers(0, 99))
def test_a_drain_takes_a_node_of_a_host_with_as_few_as_there_is(shard_map: ShardMap, seed: int) -> None:
    gone = shard_map.nodes[0].id
    try:
        plan = drain_node(shard_map, gone)
    except PlanError:
        return
    for group in shard_map.data_groups():
        if gone not in group.voters:
            continue
        kept = [voter for voter in group.voters if voter != gone]
        free = [node.id for node in shard_map.nodes if node.id not in group.voters]
        assert shared(shard_map.nodes, plan[group.id]) == min(shared(shard_map.nodes, [*kept, one]) for one in free)
    assert drain_node(shuffled(shard_map, seed), gone) == plan


@settings(max_examples=200, deadline=None)
@given(placed(), st.integers(0, 99))
def test_levelling_parts_what_can_be_parted_and_then_levels(shard_map: ShardMap, seed: int) -> None:
    plan = balance_nodes(shard_map)
    after = replanned(shard_map, plan)
    for group in after.data_groups():
        assert len(set(group.voters)) == len(shard_map.group(group.id).voters)
        assert shared(after.nodes, group.voters) == fewest(after.nodes, len(group.voters))
    loads = held(after)
    for group in after.data_groups():
        for full in group.voters:
            for empty in set(loads) - set(group.voters):
                # No single move makes numbers more even without bringing voters together.
                moved = [empty if voter == full else voter for voter in group.voters]
                assert (
                    loads[full] - loads[empty] <= 1
                    or shared(after.nodes, moved) > shared(after.nodes, group.voters)
                )  # fmt: skip
    assert balance_nodes(after) == {}
    assert balance_nodes(shuffled(shard_map, seed)) == plan


@settings(max_examples=100, deadline=None)
@given(placed())
def test_levelling_some_nodes_parts_voters_among_them_only(shard_map: ShardMap) -> None:
    some = {node.id for node in shard_map.nodes if node.id % 2}
    after = replanned(shard_map, balance_nodes(shard_map, some))
    for group in shard_map.groups:
        before, now = set(group.voters), set(after.group(group.id).voters)
        assert before ^ now <= some
        assert shared(shard_map.nodes, now) <= shared(shard_map.nodes, before)


@settings(max_examples=150, deadline=None)
@given(placed(), st.integers(0, 99))
def test_the_meta_group_is_apart(shard_map: ShardMap, seed: int) -> None:
    members = meta_members(shard_map)
    assert shared(shard_map.nodes, members) == fewest(shard_map.nodes, len(members))
    assert meta_members(replanned(shard_map, {0: members})) == members == meta_members(shuffled(shard_map, seed))
    old = shard_map.group(0).voters
    if shared(shard_map.nodes, old) == 0:
        assert set(old) <= set(members)
    some = {node.id for node in shard_map.nodes if node.id % 2}
    assert set(meta_members(shard_map, some)) ^ set(old) <= some


def test_a_second_and_a_third_machine_take_their_share() -> None:
    made = initial_map("c", nodes_of("aaa"), 3, 256, 3)
    grown = replace(made, nodes=nodes_of("aaabc"))
    plan = balance_nodes(grown)
    after = replanned(grown, plan)
    # Three voters on three machines: nodes 4 and 5 alone on theirs have all groups.
    assert all({4, 5} < set(group.voters) for group in after.data_groups())
    assert sorted(held(after).values()) == [1, 1, 1, 3, 3]
    assert {4, 5} < set(meta_members(grown))
