"""Each command of raftkv-admin asks for the right thing, and tells people and programs what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import pytest

from raftkv.api.status import Problem
from raftkv.cli.admin.jobs import plan_id
from raftkv.store.meta_state import JoinToken
from shards.planner import plan_slots
from tests.admin_world import CLUSTER, SLOTS, Admin, World, world_of


@pytest.fixture
def world() -> Iterator[World]:
    with world_of(nodes=3, groups=2) as made:
        yield made


@pytest.fixture
def four() -> Iterator[World]:
    """Four nodes, the last without replicas."""
    with world_of(nodes=3, groups=2) as made:
        assert made.join() == 4
        yield made


@pytest.fixture
def admin(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Admin:
    name = next(name for name in ("world", "four") if name in request.fixturenames)
    return Admin(request.getfixturevalue(name).endpoints, capsys, monkeypatch)


def kinds(report: dict[str, list[dict[str, object]]]) -> list[object]:
    return [problem["kind"] for problem in report["problems"]]


# Health


def test_a_healthy_cluster(world: World, admin: Admin) -> None:
    assert admin("cluster health") == 0
    assert admin.out == "healthy: 3 nodes, 3 groups\n"
    report = admin.json("cluster status")
    assert (report["cluster_id"], report["healthy"], report["problems"]) == (CLUSTER, True, [])
    assert [(node["id"], node["address"], node["ready"]) for node in report["nodes"]] == [
        (node, world.address(node), True) for node in (1, 2, 3)
    ]
    group = report["groups"][1]
    assert (group["id"], group["leader"], group["term"], group["commit"]) == (1, world.leading[1], 3, 5000)
    assert [replica["lag"] for replica in group["replicas"]] == [0, 0, 0]
    assert admin("cluster status") == 0
    assert CLUSTER in admin.out
    assert "0 (meta)" in admin.out
    assert world.address(2) in admin.out


def test_every_problem_is_named(world: World, admin: Admin) -> None:
    world.lag[1, 2] = 2000
    world.missing.add((2, 3))
    world.auto = False
    world.why_waiting = {2: "node 3 is behind"}
    world.command("want", world.map.epoch, [[2, [1, 2]]])
    world.command("drain", world.map.epoch, 3, [])
    report = admin.json("cluster health", code=5)
    assert kinds(report) == ["draining", "replica_lagging", "replica_missing", "voters_differ"]
    texts = [problem["text"] for problem in report["problems"]]
    assert texts[0] == "node 3 is draining: 3 replicas left"
    assert texts[1] == "group 1 on node 2 is 2,000 entries behind"
    assert "node 3 has no replica of group 2" in texts[2]
    assert texts[3] == "group 2 has voters 1, 2, 3, desired are 1, 2: node 3 is behind"
    assert admin("cluster health --max-lag 2000") == 5
    assert "replica_lagging" not in admin.out


def test_a_node_that_is_cut_off_from_the_others_is_named(world: World, admin: Admin) -> None:
    node = next(node for node in (1, 2, 3) if node not in world.leading.values())
    world.not_ready.add(node)
    (problem,) = admin.json("cluster health", code=5)["problems"]
    assert (problem["kind"], problem["node"]) == ("node_not_ready", node)
    assert "it knows no leader of groups 0, 1, 2" in problem["text"]


def test_what_nodes_tell_of_themselves_is_passed_on(world: World, admin: Admin) -> None:
    world.told = {2: (Problem("disk_full", "no room"), Problem("lost_entries", "old data", group=1, node=3))}
    report = admin.json("cluster health", code=5)
    assert report["problems"] == [
        {"kind": "disk_full", "group": None, "node": 2, "text": "node 2: no room"},
        {"kind": "lost_entries", "group": 1, "node": 3, "text": "node 2: old data"},
    ]


def test_a_cut_between_two_nodes_that_answer_is_named(world: World, admin: Admin) -> None:
    world.silence = {(1, 3): 4.25, (2, 3): None}
    report = admin.json("cluster health", code=5)
    assert [(one["kind"], one["node"], one["text"]) for one in report["problems"]] == [
        ("link_down", 1, "node 1 has heard nothing from node 3 for 4.2 s"),
        ("link_down", 2, "node 2 has no connection from node 3"),
    ]
    peers = {one["node"]: one for one in report["nodes"][0]["peers"]}
    assert peers[2] == {"node": 2, "up": True, "round_trip_seconds": 0.001, "silence_seconds": 0.0}
    world.stop_node(3)
    assert kinds(admin.json("cluster health", code=5)) == ["node_unreachable"]


def test_a_dead_node_and_a_group_without_a_majority(world: World, admin: Admin) -> None:
    world.stop_node(3)
    report = admin.json("cluster health", code=5)
    assert kinds(report) == ["node_unreachable"]
    assert "replicas of groups 0, 1, 2" in report["problems"][0]["text"]
    world.stop_node(2)
    report = admin.json("cluster health", code=5)
    assert kinds(report) == ["node_unreachable", "node_unreachable", "no_leader", "no_leader", "no_leader"]
    assert "1 of its 3 voters answer" in report["problems"][2]["text"]


def test_without_the_meta_group_a_copy_of_the_map_must_do(world: World, admin: Admin) -> None:
    world.meta_down = True
    report = admin.json("cluster health --timeout 0.5", code=5)
    assert kinds(report) == ["meta_unavailable"]
    assert admin("map show --timeout 0.5") == 0
    assert "may be old" in admin.err
    assert admin("rebalance plan --timeout 0.5") == 3
    assert "the meta group has no leader" in admin.err


def test_another_node_at_an_address_is_not_taken_for_the_right_one(world: World, admin: Admin) -> None:
    with world_of(nodes=1, groups=1, cluster_id="9d4f7c52-9a3e-4a8e-8c0f-0a3a1b2c3d4e") as other:
        world.add_node(other.address(1), "127.0.0.1:99", "ab" * 16)
        report = admin.json("cluster health", code=5)
    assert "a node of another cluster answers at its address" in report["problems"][0]["text"]


# The map and slots


def test_the_map(world: World, admin: Admin) -> None:
    report = admin.json("map show")
    assert (report["epoch"], report["slots"]) == (1, SLOTS)
    assert sum(group["slot_count"] for group in report["groups"]) == SLOTS
    found = admin.json("map show", "--key", "user:1")
    assert admin.json("map show", "--slot", str(found["slot"]))["group"] == found["group"]
    assert world.map.owners[found["slot"]] == found["group"]
    assert found["leader"] == world.leading[found["group"]]
    assert admin("map show --slot 256") == 2
    assert "0 to 255" in admin.err
    assert admin("map show --slot 1 --key a") == 2
    assert admin("map show") == 0
    assert "voters + learners" in admin.out


def test_slots_with_most(world: World, admin: Admin) -> None:
    for number in range(20):
        world.put(b"{a}%d" % number, b"x" * 10)
    world.put(b"big", b"x" * 5000)
    assert [one["keys"] for one in admin.json("slot stats --top 2")["slots"]] == [1, 20]
    report = admin.json("slot stats --top 1 --by keys")
    assert report["slots"][0]["keys"] == 20
    assert (report["keys"], report["missing_groups"]) == (21, [])
    del world.leading[1]
    assert admin.json("slot stats", code=5)["missing_groups"] == [1]
    assert "no leader answers for the groups 1" in admin.err


def test_slots_are_moved(world: World, admin: Admin) -> None:
    from_one, from_two = world.map.slots_of(1)[:3], world.map.slots_of(2)[:2]
    target = world.command("add group", [1, 2, 3])
    text = ",".join(str(slot) for slot in (*from_one, *from_two))
    report = admin.json("slot move", text, "--to", str(target), "--wait", "--slots-per-move", "2", "--rate", "1MB")
    assert world.map.slots_of(target) == tuple(sorted((*from_one, *from_two)))
    assert (report["job"], report["slots"]) == (1, 5)
    assert report["result"]["job"]["moves"]["total"] == 3
    assert report["result"]["job"]["rate_limit"] == 1_000_000
    assert admin("slot move", text, "--to", str(target)) == 0
    assert admin.out == f"group {target} owns these slots already\n"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ("1-x --to 1", 2, "neither a number nor a range"),
        ("1 --to 9", 4, "there is no data group 9"),
        ("300 --to 1", 2, "there is no slot 300: the cluster has 0 to 255"),
        ("0-99999 --to 1", 2, "there is no slot 99999: the cluster has 0 to 255"),
        ("0-99999999999999999999 --to 1", 2, "the cluster has 0 to 255"),
        ("1 --to 1 --rate quick", 2, "is not a rate"),
    ],
)
def test_impossible_moves(world: World, admin: Admin, arguments: str, code: int, told: str) -> None:
    assert admin(f"slot move {arguments}") == code
    assert told in admin.err
    assert world.meta.state.job is None


# Rebalancing


def test_a_plan_is_applied_only_if_it_is_still_the_same(world: World, admin: Admin) -> None:
    world.command("add group", [1, 2, 3])
    plan = admin.json("rebalance plan")
    assert plan["plan_id"] == plan_id(world.map.epoch, plan_slots(world.map))
    assert plan["balance"][2] == {"group": 3, "before": 0, "after": 85, "ideal": 85.33}
    assert admin("rebalance plan") == 0
    assert plan["plan_id"] in admin.out

    assert admin("rebalance apply --plan-id 0123456789ab") == 4
    assert f"the plan is {plan['plan_id']} now" in admin.err
    dry = admin.json("rebalance apply --dry-run --plan-id", plan["plan_id"])
    assert dry["job"] is None
    assert world.meta.state.job is None
    done = admin.json("rebalance apply --wait --plan-id", plan["plan_id"])
    assert done["result"]["job"]["state"] == "done"
    assert done["result"]["job"]["freeze_ms"]["max"] > 0
    assert len(world.map.slots_of(3)) == 85
    assert admin("rebalance apply") == 0
    assert admin.out == "balanced: there is nothing to move\n"
    assert admin.json("rebalance apply")["job"] is None
    assert admin("rebalance status") == 0
    assert "85 of 85 (100 %)" in admin.out


def test_weights(world: World, admin: Admin) -> None:
    assert admin.json("rebalance apply --wait --weight 1=3")["result"]["job"]["state"] == "done"
    assert len(world.map.slots_of(1)) == 192
    assert admin("rebalance plan --weight 1") == 2
    assert admin("rebalance plan --weight 9=1") == 4
    assert "group 9 has a weight but is not a data group" in admin.err


def test_a_job_is_watched_paused_tuned_and_cancelled(world: World, admin: Admin) -> None:
    assert admin.json("rebalance status") == {"job": None}
    for command in ("pause", "resume", "cancel"):
        assert admin(f"rebalance {command}") == 4
        assert "nothing is under way" in admin.err
    assert admin("rebalance tune --rate 1MB") == 4
    assert admin("rebalance tune") == 2

    world.auto = False
    world.command("add group", [1, 2, 3])
    assert admin("rebalance apply --slots-per-move 10") == 0
    assert "job 1 has started" in admin.err
    assert admin("rebalance apply") == 4
    assert "job 1 is under way" in admin.err
    world.settle(2)
    job = admin.json("rebalance status")["job"]
    assert (job["state"], job["slots"]["done"], job["moves"]["done"]) == ("running", 20, 2)
    assert job["slots"]["left"] == 65
    assert job["eta_seconds"] > 0
    assert admin.json("rebalance pause") == {"job": 1}
    assert admin.json("rebalance status")["job"]["state"] == "paused"
    assert admin("rebalance resume") == 0
    assert admin("rebalance tune --rate 2MB") == 0
    assert world.meta.state.job is not None
    assert (world.meta.state.job.rate, world.meta.state.job.concurrency) == (2_000_000, 2)
    assert admin("rebalance status --wait --wait-timeout 0.3") == 6
    assert "it continues" in admin.err
    assert admin("rebalance cancel") == 0
    assert admin("rebalance status --wait") == 6
    assert "cancelled" in admin.out


# Groups


def test_groups_come_and_go(world: World, admin: Admin) -> None:
    made = admin.json("group add --count 2")["groups"]
    assert [(group["id"], sorted(group["voters"])) for group in made] == [(3, [1, 2, 3]), (4, [1, 2, 3])]
    assert "rebalance apply" in admin.err
    assert admin("rebalance apply --wait") == 0
    listed = admin.json("group list")["groups"]
    assert [group["slots"] for group in listed] == [0, 64, 64, 64, 64]
    assert admin("group list") == 0

    assert admin("group remove 4 --yes") == 4
    assert "owns 64 slots: drain it first" in admin.err
    assert admin.json("group drain 4 --wait")["result"]["job"]["state"] == "done"
    assert admin("group drain 4 --yes") == 0
    assert admin.out == "group 4 owns no slots\n"
    assert admin("group remove 4 --yes") == 0
    assert 4 not in {group.id for group in world.map.groups}
    assert admin("group remove 4 --yes") == 4
    assert admin("group drain 9 --yes") == 4


def test_draining_a_group_leaves_the_others_where_they_are(world: World, admin: Admin) -> None:
    world.command("add group", [1, 2, 3])
    before = world.map
    assert admin("group drain 2 --wait --yes") == 0
    assert set(before.slots_of(1)) <= set(world.map.slots_of(1))
    assert not world.map.slots_of(2)


def test_a_group_needs_nodes(world: World, admin: Admin) -> None:
    assert admin("group add --replicas 4") == 4
    assert "4 replicas need as many nodes, there are 3" in admin.err
    world.stop_node(3)
    assert admin("group add") == 4
    assert [sorted(one["voters"]) for one in admin.json("group add --replicas 2")["groups"]] == [[1, 2]]


# Nodes


def test_how_to_join_is_shown(world: World, admin: Admin) -> None:
    assert admin("node add") == 0
    line, _, token = admin.out.strip().partition(" --token=")
    assert line == f"raftkv serve --join {world.endpoints} --data-dir DIR --address HOST:PORT --secret-file FILE"
    (kept,) = world.meta.state.join_tokens.items()
    assert kept == (sha256(token.encode()).digest(), JoinToken(kept[1].expires, ""))
    assert token not in str(world.served), "the cluster knows no token, only what proves one"
    assert admin.json("node add").keys() == {"command", "token"}
    assert len(world.meta.state.join_tokens) == 2


def test_a_node_gets_its_share(four: World, admin: Admin) -> None:
    assert admin("node list") == 0
    for _ in range(2):
        four.command("add group", [1, 2, 3])
    report = admin.json("node add 4 --wait")
    assert report["groups"]
    assert len(four.map.groups_on(4)) == 3
    assert admin("node add 4 --wait") == 0
    assert admin.out == "the replicas are spread evenly already\n"
    assert admin("node balance") == 0
    assert admin("node add 5") == 4
    assert "there is no node 5" in admin.err


def test_the_meta_group_grows_with_the_cluster(four: World, admin: Admin) -> None:
    assert four.map.group(0).voters == (1, 2, 3)
    assert admin("node add 4") == 0
    assert four.map.group(0).voters == (1, 2, 3)
    four.join()
    assert admin("node add 5") == 0
    assert four.map.group(0).voters == (1, 2, 3, 4, 5)


def test_a_node_is_drained_and_removed(four: World, admin: Admin) -> None:
    assert admin("node remove 2 --yes") == 4
    assert "still holds replicas of the groups 0, 1, 2; `raftkv-admin node drain 2` moves them away" in admin.err
    assert {one["group"] for one in admin.json("node drain 2 --wait")["groups"]} == {0, 1, 2}
    assert not four.map.groups_on(2)
    assert 2 in four.meta.state.draining
    assert admin("node add 2") == 4
    assert "node 2 is drained" in admin.err
    assert admin("node undrain 2") == 0
    assert admin("node drain 2 --yes") == 0
    assert admin("node remove 2 --yes") == 0
    assert four.map.removed == (2,)
    assert admin.json("node remove 2") == {"node": 2, "removed_now": False}
    assert admin("node drain 2 --yes") == 4
    assert "has been removed" in admin.err


def test_what_would_leave_too_few_nodes_is_refused_with_the_reason(world: World, admin: Admin) -> None:
    assert admin("node drain 2 --yes") == 4
    assert "too few nodes are left for groups 1, 2" in admin.err
    assert "2 nodes would be left: 1, 3" in admin.err
    assert admin("node remove 2 --yes") == 4
    assert "it cannot be drained: too few nodes" in admin.err
    assert not world.meta.state.draining


def test_what_would_cost_a_quorum_is_refused_with_the_reason(four: World, admin: Admin) -> None:
    four.command("add group", [1, 3])
    four.stop_node(3)
    assert admin("node drain 1 --yes") == 4
    assert "group 3 (voters 1, 3; no answer from 3) has no majority" in admin.err
    four.stop_node(4)
    assert admin("node drain 1 --yes") == 4
    assert "1 node would be left: 2; no answer from 3, 4" in admin.err
    assert not four.meta.state.draining
    assert not four.meta.state.wanted


def test_a_dead_node_is_replaced(four: World, admin: Admin) -> None:
    four.stop_node(2)
    assert admin("node replace 2 5 --yes") == 4
    assert "there is no node 5" in admin.err
    assert admin("node replace 1 3 --yes") == 4
    assert "already has a replica" in admin.err
    report = admin.json("node replace 2 4")
    assert (report["removed_now"], four.map.removed) == (True, (2,))
    assert {group.id for group in four.map.groups_on(4)} == {0, 1, 2}
    assert admin.json("node replace 2 4")["removed_now"] is False
    assert "was replaced and removed before" not in admin.err


def test_a_replacement_that_was_interrupted_goes_on(four: World, admin: Admin) -> None:
    four.auto = False
    assert admin("node replace 2 4 --yes --wait-timeout 0.3") == 6
    assert "it continues" in admin.err
    assert set(four.meta.state.wanted) == {0, 1, 2}
    # One group has the new node and not yet lost the old one, another is done.
    four._tell("learn", 1, 4)
    four._tell("voters", 1, 1, [1, 2, 3, 4])
    four._tell("learn", 2, 4)
    four._tell("voters", 2, 1, list(four.meta.state.wanted[2]))
    assert admin("node replace 2 4 --yes --wait-timeout 0.3") == 6
    assert set(four.meta.state.wanted) == {0, 1}
    four.auto = True
    four.settle()
    assert admin("node replace 2 4 --yes") == 0
    assert four.map.removed == (2,)


def test_a_group_without_a_majority_cannot_change(four: World, admin: Admin) -> None:
    four.command("add group", [2, 3])
    four.stop_node(2)
    assert admin("node replace 3 4 --yes") == 4
    assert "group 3 (voters 2, 3; no answer from 2) has no majority" in admin.err


# Leaders


def test_leaders_are_handed_over(world: World, admin: Admin) -> None:
    target = next(node for node in world.map.group(1).voters if node != world.leading[1])
    before = world.leading[1]
    assert admin.json("leader transfer 1", str(target)) == {"group": 1, "leader": target, "before": before}
    assert world.leading[1] == world.map.group(1).voters[0] == target
    assert admin("leader transfer 0 2") == 0
    assert world.leading[0] == 2
    assert admin("leader transfer 1 9") == 4
    assert "node 9 is not a voter of group 1" in admin.err
    assert admin("leader transfer 9 1") == 4


def test_members_that_are_changed_are_not_taken_back_by_a_transfer(four: World, admin: Admin) -> None:
    four.auto = False
    four.command("want", four.map.epoch, [[1, [1, 2, 4]]])
    assert admin("leader transfer 1 2") == 4
    assert "are being changed" in admin.err
    assert 1 in four.meta.state.wanted


def test_leaders_are_balanced(world: World, admin: Admin) -> None:
    for group in (3, 4):
        assert world.command("add group", [1, 2, 3]) == group
    for group in world.leading:
        world.leading[group] = 1
    report = admin.json("leader balance --over nodes")
    assert sorted(len(node["leads"]) for node in report["nodes"]) == [1, 2, 2]
    assert all(one["leader"] == one["wanted"] for one in report["groups"])
    assert admin.json("leader balance")["over"] == "nodes"
    assert admin("map show") == 0
    assert "leaders spread over nodes" in admin.out

    report = admin.json("leader balance --over hosts")
    assert sorted(len(node["leads"]) for node in report["nodes"]) == [0, 0, 5]
    assert admin.json("cluster status")["leaders_over"] == "hosts"


def test_a_leader_that_stays_is_told(world: World, admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkv.cli.admin.leaders._PATIENCE", 0.3)
    world.refuses_transfer.add(1)
    target = next(node for node in world.map.group(1).voters if node != world.leading[1])
    assert admin("leader transfer 1", str(target)) == 6
    assert "cannot hand over at this moment" in admin.err
    report = admin.json("leader balance --over nodes", code=6)
    assert [one["group"] for one in report["missing"]] == [1]


# Consistency


def test_equal_replicas(world: World, admin: Admin) -> None:
    report = admin.json("check consistency")
    assert (report["consistent"], report["complete"]) == (True, True)
    assert [(one["group"], one["compared"]) for one in report["groups"]] == [(1, [1, 2, 3]), (2, [1, 2, 3])]
    assert sum(one["slots"] for one in report["groups"]) == SLOTS
    assert admin("check consistency --group 1") == 0
    assert "equal" in admin.out
    assert admin("check consistency --group 0") == 2
    assert admin("check consistency --group 7") == 4


def test_the_replica_that_differs_is_named(world: World, admin: Admin) -> None:
    slot = world.map.slots_of(2)[5]
    world.corrupt[3, 2, slot] = b"wrong" + bytes(11)
    report = admin.json("check consistency", code=5)
    (difference,) = report["groups"][1]["differences"]
    assert (difference["slot"], difference["nodes"]) == (slot, [3])
    assert len(set(difference["digests"].values())) == 2
    assert admin("check consistency") == 5
    assert "nodes that differ" in admin.out


def test_replicas_that_cannot_be_compared(world: World, admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkv.cli.admin.checks._SILENCE", 0.2)
    world.stop_node(3)
    report = admin.json("check consistency", code=6)
    assert (report["consistent"], report["complete"]) == (True, False)
    assert report["groups"][0]["missing"][0]["node"] == 3
