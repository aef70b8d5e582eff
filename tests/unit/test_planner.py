"""Guarantee: plans say what shall move, no more than that, and in words when they cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from shards import Group, Node, ShardMap, initial_map
from shards.leaders import balance_leaders
from shards.planner import (
    Move,
    PlanError,
    balance,
    balance_nodes,
    batches,
    drain_node,
    meta_members,
    place_group,
    plan_slots,
    replace_node,
)


def node(number: int) -> Node:
    return Node(number, f"n{number}:7401", f"n{number}:7501", "")


def map_of(
    nodes: int, voters: Mapping[int, Sequence[int]], slots: Mapping[int, int] | None = None, meta: Sequence[int] = (1,)
) -> ShardMap:
    """Data groups with these voters; group ``g`` owns ``slots[g]`` of 1024, in one run, else all are the first's."""
    counts = slots or {min(voters): 1024}
    owners = tuple(group for group, count in counts.items() for _ in range(count))
    groups = (Group(0, tuple(meta)), *(Group(group, tuple(members)) for group, members in voters.items()))
    return ShardMap("c", 1, 1024, tuple(node(one + 1) for one in range(nodes)), groups, owners)


def slotted(counts: Mapping[int, int]) -> ShardMap:
    return map_of(1, dict.fromkeys(counts, (1,)), counts)


def moved(moves: Sequence[Move]) -> dict[tuple[int, int], int]:
    return {(move.source, move.target): len(move.slots) for move in moves}


def after(shard_map: ShardMap, plan: Mapping[int, tuple[int, ...]]) -> ShardMap:
    groups = (replace(one, voters=plan.get(one.id, one.voters), learners=()) for one in shard_map.groups)
    return replace(shard_map, groups=tuple(groups))


def test_a_level_map_needs_no_move() -> None:
    assert plan_slots(slotted({1: 341, 2: 342, 3: 341})) == ()


def test_a_new_group_gets_its_share_from_all() -> None:
    plan = plan_slots(slotted({1: 341, 2: 342, 3: 341, 4: 0}))
    assert moved(plan) == {(1, 4): 85, (2, 4): 86, (3, 4): 85}
    assert plan[0].slots == tuple(range(256, 341))


def test_a_drained_group_gives_all_to_the_others() -> None:
    plan = plan_slots(slotted({1: 256, 2: 256, 3: 256, 4: 256}), {4: 0})
    assert moved(plan) == {(4, 1): 86, (4, 2): 85, (4, 3): 85}


def test_a_group_of_twice_the_weight_has_twice_the_slots() -> None:
    assert moved(plan_slots(slotted({1: 512, 2: 512, 3: 0}), {3: 2})) == {(1, 3): 256, (2, 3): 256}
    assert moved(plan_slots(slotted({1: 512, 2: 512}), {1: 3})) == {(2, 1): 256}


def test_weights_mean_what_they_say_in_decimals() -> None:
    assert plan_slots(slotted({1: 256, 2: 768}), {1: 0.1, 2: 0.3}) == ()
    assert moved(plan_slots(slotted({1: 257, 2: 767}), {1: 0.1, 2: 0.3})) == {(1, 2): 1}
    assert moved(plan_slots(slotted({1: 255, 2: 769}), {1: 0.1, 2: 0.3})) == {(2, 1): 1}
    assert [share.ideal for share in balance(slotted({1: 1024, 2: 0}), {1: 0.1, 2: 0.3}).shares] == [256.0, 768.0]


def test_the_spare_slots_stay_where_they_are() -> None:
    # 1024 = 3 * 341 + 1: whoever has the odd one keeps it.
    for spare in (1, 2, 3):
        assert plan_slots(slotted({group: 341 + (group == spare) for group in (1, 2, 3)})) == ()
    # 1024 = 5 * 204 + 4: the new group goes short, as the others have more than 204 already.
    assert moved(plan_slots(slotted({1: 256, 2: 256, 3: 256, 4: 256, 5: 0}))) == {
        (group, 5): 51 for group in range(1, 5)
    }


def test_else_the_spare_slots_go_where_most_was_rounded_away() -> None:
    # Ideals of 438.86, 438.86 and 146.29: two spare slots, one of which stays with group 1.
    assert moved(plan_slots(slotted({1: 1024, 2: 0, 3: 0}), {1: 3, 2: 3})) == {(1, 2): 439, (1, 3): 146}
    assert moved(plan_slots(slotted({1: 1024, 2: 0, 3: 0}), {1: 3, 3: 3})) == {(1, 2): 146, (1, 3): 439}
    # Group 1 is at its ideal rounded down and keeps that, though group 3 was rounded by less.
    assert moved(plan_slots(slotted({1: 438, 2: 586, 3: 0}), {1: 3, 2: 3})) == {(2, 3): 147}
    # Ideals of 219.43, 219.43, 73.14 and 512: the one spare slot stays with group 3, that is at 74, for all its .14.
    assert moved(plan_slots(slotted({1: 438, 2: 219, 3: 74, 4: 293}), {1: 3, 2: 3, 4: 7})) == {(1, 4): 219}


def test_the_initial_map_grows_by_exactly_the_new_share() -> None:
    first = initial_map("c", [node(1), node(2), node(3)], 3)
    plan = plan_slots(first.with_group(Group(4, (1, 2, 3))))
    assert sum(moved(plan).values()) == 256
    assert {move.target for move in plan} == {4}


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), 1e-9, 1e9])
def test_weights_out_of_range_are_refused(weight: float) -> None:
    with pytest.raises(PlanError, match="the weight of group 2 must be 0 or from 1e-06 to 1e\\+06"):
        plan_slots(slotted({1: 512, 2: 512}), {2: weight})


def test_weights_of_no_data_group_are_refused() -> None:
    for group in (0, 7):
        with pytest.raises(PlanError, match=f"group {group} has a weight but is not a data group"):
            plan_slots(slotted({1: 1024}), {group: 1})


def test_somebody_must_have_the_slots() -> None:
    with pytest.raises(PlanError, match="at least one group must have a weight above 0"):
        balance(slotted({1: 512, 2: 512}), {1: 0, 2: 0})


def test_batches_let_disjoint_pairs_go_on_at_once() -> None:
    moves = (Move((1, 2, 3), 1, 4), Move((10, 11), 2, 5), Move((20,), 3, 4))
    assert batches(moves, 2) == (
        Move((1, 2), 1, 4),
        Move((10, 11), 2, 5),
        Move((20,), 3, 4),
        Move((3,), 1, 4),
    )
    assert batches((), 1) == ()


def test_batches_of_pairs_that_share_a_group_take_turns() -> None:
    moves = (Move((1, 2), 1, 3), Move((5, 6, 7, 8), 2, 3))
    assert [move.source for move in batches(moves, 1)] == [2, 1, 2, 2, 1, 2]


def test_a_batch_needs_a_slot() -> None:
    with pytest.raises(PlanError, match="a move needs at least one slot, not 0"):
        batches((), 0)


def test_the_balance_of_a_map() -> None:
    found = balance(slotted({1: 512, 2: 256, 3: 256}))
    assert [(share.group, share.slots) for share in found.shares] == [(1, 512), (2, 256), (3, 256)]
    assert found.peak_to_mean == 1.5
    assert found.draining == 0
    assert found.moved_share((Move(tuple(range(128)), 1, 2), Move((900,), 1, 3))) == 129 / 1024
    drained = balance(slotted({1: 512, 2: 256, 3: 256}), {3: 0})
    assert (drained.peak_to_mean, drained.draining, drained.shares[2].ideal) == (1.0, 256, 0.0)


def test_a_group_is_placed_on_the_least_loaded_nodes() -> None:
    shard_map = map_of(5, {1: (1, 2, 3), 2: (2, 3, 4)})
    assert place_group(shard_map, 3) == (5, 4, 1)
    assert place_group(shard_map, 2, among=[3, 2]) == (3, 2)


def test_groups_placed_one_after_the_other_are_even() -> None:
    shard_map = map_of(4, {1: (1, 2, 3)})
    for group in range(2, 9):
        shard_map = shard_map.with_group(Group(group, place_group(shard_map, 3)))
    assert balance_nodes(shard_map) == {}
    leads = [sum(group.voters[0] == one for group in shard_map.groups) for one in (1, 2, 3, 4)]
    assert max(leads) - min(leads) <= 1


def test_a_group_needs_as_many_nodes_as_replicas() -> None:
    shard_map = map_of(3, {1: (1, 2, 3)})
    with pytest.raises(PlanError, match="4 replicas need as many nodes, there are 3"):
        place_group(shard_map, 4)
    with pytest.raises(PlanError, match="at least one replica"):
        place_group(shard_map, 0)
    with pytest.raises(PlanError, match="node 9 is not a member of the cluster"):
        place_group(shard_map, 1, among=[1, 9])


def test_a_drained_node_is_followed_by_the_least_loaded_ones() -> None:
    shard_map = map_of(5, {1: (1, 2, 3), 2: (2, 1, 3), 3: (3, 4, 2)}, meta=(1, 2, 3))
    # Node 2 leads one group, nodes 4 and 5 none.
    assert drain_node(shard_map, 1) == {0: (5, 2, 3), 1: (2, 5, 3), 2: (2, 4, 3)}
    assert drain_node(shard_map, 1, among=[1, 4]) == {0: (4, 2, 3), 1: (2, 4, 3), 2: (2, 4, 3)}
    assert drain_node(shard_map, 5) == {}


def test_a_drain_names_the_groups_without_a_node() -> None:
    shard_map = map_of(4, {1: (1, 2, 3), 2: (1, 2, 4), 3: (4, 2)}, meta=(1, 2, 3))
    with pytest.raises(PlanError, match="too few nodes are left for group 2: none can take the place of node 1"):
        drain_node(shard_map, 1, among=[2, 4])
    three = map_of(3, {1: (1, 2, 3), 2: (3, 2, 1)}, meta=(1, 2))
    with pytest.raises(PlanError, match="too few nodes are left for groups 1, 2: none"):
        drain_node(three, 1)
    with pytest.raises(PlanError, match="for groups 0, 1: none"):
        drain_node(map_of(1, {1: (1,)}), 1)
    with pytest.raises(PlanError, match="node 9 is not a member"):
        drain_node(three, 9)


def test_the_meta_group_is_drained_of_what_fewer_nodes_do_not_want() -> None:
    five = map_of(5, {1: (1, 2, 3)}, meta=(1, 2, 3, 4, 5))
    assert drain_node(five, 4) == {0: (1, 2, 3)}
    assert drain_node(five, 4, among=[2, 3, 5]) == {0: (2, 3, 5)}
    # Six nodes: five are left and want five voters, but the sixth is not to be had.
    six = map_of(6, {1: (1, 2, 3)}, meta=(1, 2, 3, 4, 5))
    assert drain_node(six, 4) == {0: (1, 2, 3, 6, 5)}
    with pytest.raises(PlanError, match="too few nodes are left for group 0"):
        drain_node(six, 4, among=[1, 2, 3, 5])


def test_a_drain_that_was_cut_short_goes_on_the_same_way() -> None:
    shard_map = map_of(6, {1: (1, 2, 3), 2: (1, 5, 6)}, meta=(2,))
    shard_map = shard_map.with_group(Group(1, (1, 2, 3), learners=(6,)))
    # Node 4 has nothing at all, but node 6 has the log.
    assert drain_node(shard_map, 1) == {1: (3, 6, 2), 2: (5, 4, 6)}
    assert drain_node(shard_map, 6)[1] == (1, 2, 3)


def test_a_node_that_replaces_another_has_its_places() -> None:
    shard_map = map_of(4, {1: (1, 2, 3), 2: (2, 3, 1), 3: (2, 3)}, meta=(3, 1, 2))
    assert replace_node(shard_map, 1, 4) == {0: (3, 4, 2), 1: (4, 2, 3), 2: (2, 3, 4)}
    assert replace_node(shard_map.with_group(Group(1, (1, 2, 3), learners=(4,))), 1, 4)[1] == (4, 2, 3)
    assert replace_node(shard_map, 4, 1) == {}


def test_a_node_cannot_replace_one_with_which_it_shares_a_group() -> None:
    shard_map = map_of(3, {1: (1, 2), 2: (2, 1), 3: (1, 3)})
    with pytest.raises(PlanError, match="node 2 cannot replace node 1: it already has a replica of groups 1, 2"):
        replace_node(shard_map, 1, 2)
    with pytest.raises(PlanError, match="node 1 cannot replace itself"):
        replace_node(shard_map, 1, 1)
    for old, new in ((1, 9), (9, 1)):
        with pytest.raises(PlanError, match="node 9 is not a member"):
            replace_node(shard_map, old, new)


def test_a_new_node_gets_replicas_rather_of_followers_and_of_different_groups() -> None:
    shard_map = map_of(4, dict.fromkeys(range(1, 5), (1, 2, 3)))
    plan = balance_nodes(shard_map)
    # Twelve replicas on four nodes: three each.
    assert plan == {1: (4, 2, 3), 2: (1, 4, 3), 3: (1, 2, 4)}
    assert balance_nodes(after(shard_map, plan)) == {}
    assert balance_nodes(shard_map, among=[1, 2, 3]) == {}
    assert balance_nodes(shard_map, among=[]) == {}
    assert balance_nodes(shard_map, among=[2, 4]) == {1: (1, 4, 3), 2: (1, 4, 3)}
    half_way = shard_map.with_group(Group(4, (1, 2, 3), learners=(4,)))
    assert balance_nodes(half_way) == {1: (1, 4, 3), 2: (1, 2, 4), 4: (4, 2, 3)}
    # Six replicas have to move, so only one of five groups changes twice.
    assert len(balance_nodes(map_of(5, dict.fromkeys(range(1, 6), (1, 2, 3))))) == 5
    led = map_of(3, {1: (1, 2), 2: (2, 1), 3: (1, 2)})
    assert balance_nodes(led) == {1: (1, 3), 2: (2, 3)}


def test_the_meta_group_has_the_members_that_a_new_cluster_would_have() -> None:
    assert meta_members(map_of(1, {1: (1,)})) == (1,)
    assert meta_members(map_of(3, {1: (1,)}, meta=(2,))) == (2, 1, 3)
    assert meta_members(map_of(4, {1: (1,)}, meta=(4, 2, 3))) == (4, 2, 3)
    assert meta_members(map_of(7, {1: (1,)}, meta=(7, 2, 3))) == (7, 2, 3, 1, 4)
    assert meta_members(map_of(4, {1: (1,)}, meta=(4, 1, 2, 3))) == (4, 1, 2, 3)
    half_way = map_of(7, {1: (1,)}, meta=(1, 2, 3)).with_group(Group(0, (1, 2, 3), learners=(6,)))
    assert meta_members(half_way) == (1, 2, 3, 6, 4)


def test_leaders_are_spread_along_a_path_if_need_be() -> None:
    # Node 1 leads all; only by way of node 2 can node 3 take one over.
    shard_map = map_of(3, {1: (1, 2), 2: (1, 2), 3: (2, 3)}, meta=(1,))
    assert balance_leaders(shard_map) == {1: (2, 1), 3: (3, 2)}
    level = map_of(3, {1: (2, 1), 2: (3, 1, 2)}, meta=(1, 2, 3))
    assert balance_leaders(level) == {}


def test_a_new_order_of_voters_keeps_the_rest_in_order() -> None:
    shard_map = map_of(3, {1: (1, 3, 2)}, meta=(1, 2, 3))
    assert list(balance_leaders(shard_map).values()) == [(2, 1, 3)]
