"""raftkv-admin against real nodes: health, moves of slots, groups, leaders, checks and backups, while clients go on."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import raftkv
from raftkv.testing import LocalCluster
from tests.admin_world import Admin
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).resolve().parents[2]

RECORDS = {b"key:%d" % number: b"value %d" % number for number in range(2000)}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, groups=2, slots=256) as running:
        asyncio.run(fill(running.endpoints))
        yield running


async def fill(endpoints: str) -> None:
    async with raftkv.AsyncClient(endpoints, timeout=PATIENCE) as kv:
        await asyncio.gather(*(kv.put(key, value) for key, value in RECORDS.items()))


@pytest.fixture
def admin(cluster: LocalCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Admin:
    return Admin(cluster.endpoints, capsys, monkeypatch)


class Writer:
    """Counts in one key while the context lasts; every acknowledged write must be there at the end, once."""

    def __init__(self, endpoints: str) -> None:
        self._endpoints = endpoints
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.acknowledged = {f"w:{number}": 0 for number in range(64)}
        self.problems: list[BaseException] = []

    def _run(self) -> None:
        try:
            with raftkv.Client(self._endpoints, timeout=PATIENCE) as kv:
                while not self._over.is_set():
                    for key, count in self.acknowledged.items():
                        assert kv.cas(key, str(count) if count else None, str(count + 1))
                        self.acknowledged[key] = count + 1
        except BaseException as problem:  # noqa: BLE001 - told by check()
            self.problems.append(problem)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def check(self) -> None:
        assert not self.problems
        with raftkv.Client(self._endpoints, timeout=PATIENCE) as kv:
            for key, count in self.acknowledged.items():
                record = kv.get(key)
                assert record is not None
                assert record.value == str(count).encode()
                kv.delete(key)


def assert_all_there(endpoints: str) -> None:
    with raftkv.Client(endpoints, timeout=PATIENCE) as kv:
        assert {record.key: record.value for record in kv.scan()} == RECORDS


def test_status_and_health(cluster: LocalCluster, admin: Admin) -> None:
    # Leaderships are spread by and by.
    until(lambda: admin("cluster health") == 0)

    report: dict[str, Any] = {}

    def leaders_are_told() -> bool:
        nonlocal report
        report = admin.json("cluster status")
        return all(group["leader"] == cluster.leader(group["id"]) for group in report["groups"])

    until(leaders_are_told)
    assert [node["id"] for node in report["nodes"]] == [1, 2, 3]
    for group in report["groups"]:
        assert {replica["role"] for replica in group["replicas"]} == {"leader", "follower"}
    assert admin.json("slot stats")["keys"] == len(RECORDS)
    assert admin("map show") == 0


def test_a_paused_node_is_named(cluster: LocalCluster, admin: Admin) -> None:
    # Leaderships are spread by and by, so there may be no node that leads nothing.
    node = next(node for node in cluster.nodes if node != cluster.leader(0))
    cluster.pause(node)
    try:
        report = admin.json("cluster health", code=5)
        assert ("node_unreachable", node) in {(one["kind"], one["node"]) for one in report["problems"]}
    finally:
        cluster.resume(node)
    cluster.wait_ready()


def test_slots_and_groups_change_while_clients_write(cluster: LocalCluster, admin: Admin) -> None:
    with Writer(cluster.endpoints) as writer:
        # A few slots there and back.
        moved = admin.json("map show --slot 0")
        other = 3 - moved["group"]
        report = admin.json(f"slot move 0-7 --to {other} --wait --slots-per-move 4")
        assert report["result"]["job"]["state"] == "done"
        assert admin.json("map show --slot 0")["group"] == other

        # A new group gets its share, as planned.
        (made,) = admin.json("group add")["groups"]
        plan = admin.json("rebalance plan")
        assert plan["keys"] > 0
        done = admin.json("rebalance apply --wait --rate 50MB --concurrency 3 --plan-id", plan["plan_id"])
        assert done["result"]["job"]["percent"] == 100
        assert done["result"]["job"]["keys"]["moved"] > 0
        assert done["result"]["job"]["freeze_ms"]["max"] is not None
        assert admin("rebalance plan") == 0
        assert "balanced" in admin.out
        counts = [group["slots"] for group in admin.json("group list")["groups"] if not group["meta"]]
        assert sorted(counts) == [85, 85, 86]

        # And goes again.
        assert admin("group drain", str(made["id"]), "--wait", "--yes") == 0, admin.err
        assert admin("group remove", str(made["id"]), "--yes") == 0, admin.err
    writer.check()
    assert_all_there(cluster.endpoints)
    until(lambda: admin("cluster health") == 0)


def test_a_job_is_paused_and_cancelled(cluster: LocalCluster, admin: Admin) -> None:
    group = admin.json("map show --slot 9")["group"]
    owned = next(one["slots"] for one in admin.json("map show")["groups"] if one["id"] == group)
    # So slow that it cannot be over before it is paused.
    assert admin("slot move", owned, "--to", str(3 - group), "--rate", "500", "--slots-per-move", "8") == 0
    assert admin("rebalance pause") == 0
    job = admin.json("rebalance status")["job"]
    assert job["state"] == "paused"
    assert job["slots"]["done"] < job["slots"]["total"]
    assert admin("rebalance resume") == 0
    assert admin("rebalance cancel") == 0
    assert admin("rebalance status --wait --wait-timeout 100") == 6
    assert admin("rebalance apply --wait") == 0
    assert_all_there(cluster.endpoints)


def test_an_interrupted_command_leaves_the_job_going_on(cluster: LocalCluster, admin: Admin) -> None:
    owned = next(one for one in admin.json("map show")["groups"] if one["id"] == 1)["slots"]
    before = admin.json("rebalance status")["job"]
    command = [sys.executable, "-m", "raftkv.cli.admin", "slot", "move", owned, "--to", "2", "--rate", "500", "--wait"]
    process = subprocess.Popen(
        [*command, "--endpoints", cluster.endpoints], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    until(lambda: admin.json("rebalance status")["job"]["id"] != before["id"])
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, told
    assert "interrupted; the job continues in the cluster" in told
    assert admin.json("rebalance status")["job"]["state"] == "running"
    assert admin("rebalance cancel") == 0
    assert admin("rebalance status --wait --wait-timeout 100") == 6
    assert admin("rebalance apply --wait") == 0
    assert_all_there(cluster.endpoints)


def test_leaders(cluster: LocalCluster, admin: Admin) -> None:
    for node in cluster.nodes:
        until(lambda: admin("leader transfer 1", str(node)) == 0 and cluster.leader(1) == node)  # noqa: B023 - at once
    report = admin.json("leader balance --over nodes")
    assert report["over"] == admin.json("map show")["leaders_over"] == "nodes"
    assert sorted(len(node["leads"]) for node in report["nodes"]) == [1, 1, 1]
    wanted = {one["group"]: one["wanted"] for one in report["groups"]}
    until(lambda: {group: cluster.leader(group) for group in wanted} == wanted)

    report = admin.json("leader balance --over hosts")
    assert sorted(len(node["leads"]) for node in report["nodes"]) == [0, 0, 3]
    assert admin.json("leader balance")["over"] == "hosts"


def test_leaders_of_one_machine_stay_together_when_their_node_dies(cluster: LocalCluster, admin: Admin) -> None:
    groups = [group["id"] for group in admin.json("map show")["groups"]]
    first = admin.json("leader balance --over hosts")["groups"][0]["wanted"]
    until(lambda: {cluster.leader(group) for group in groups} == {first})
    cluster.kill(first)
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        for number in range(20):
            client.put(f"after {number}", b"1")
            client.delete(f"after {number}")
    until(lambda: len({*(leaders := {cluster.leader(group) for group in groups})}) == 1 and first not in leaders)
    cluster.restart(first)
    until(lambda: {cluster.leader(group) for group in groups} == {first})


def test_replicas_are_equal(cluster: LocalCluster, admin: Admin) -> None:
    report = admin.json("check consistency")
    assert report["consistent"]
    assert report["complete"]
    assert [one["compared"] for one in report["groups"]] == [[1, 2, 3]] * len(report["groups"])
    assert sum(one["slots"] for one in report["groups"]) == 256


def test_a_backup_is_restored_into_another_cluster(cluster: LocalCluster, admin: Admin, tmp_path: Path) -> None:
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as kv:
        kv.put("mortal", "x", ttl=1000)
    folder = str(tmp_path / "backup")
    report = admin.json("backup create", folder)
    assert report["records"] == len(RECORDS) + 1
    assert admin("backup verify", folder) == 0
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as kv:
        kv.delete("mortal")
    with LocalCluster(nodes=1, groups=1, slots=512) as target:
        assert admin("backup restore", folder, "--yes", "-o", "json", "--endpoints", target.endpoints) == 0, admin.err
        assert json.loads(admin.out)["written"] == len(RECORDS) + 1
        with raftkv.Client(target.endpoints, timeout=PATIENCE) as kv:
            found = {record.key: record for record in kv.scan()}
        mortal = found.pop(b"mortal")
        assert mortal.expires_at is not None
        assert {key: record.value for key, record in found.items()} == RECORDS
        assert admin("backup restore", folder, "--yes", "--endpoints", target.endpoints) == 4
        assert "already" in admin.err
        again = ["--into-nonempty", "--yes", "--endpoints", target.endpoints]
        assert admin("backup restore", folder, *again) == 0, admin.err
