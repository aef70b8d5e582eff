"""Disks that run full under real nodes: others lead and take what is written, and nothing has to be started again."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import raftkv
from faults.disks import NoSickDisks, SickDisk, library
from raftkv.testing import LocalCluster
from tests.admin_world import Admin
from tests.needs import need
from tests.waiting import PATIENCE, until

GROUPS = range(1, 4)
MORE_THAN_A_LOG_HAS_READY = 40
"""MB: a segment in use and one that was prepared."""


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[LocalCluster, dict[int, SickDisk]]]:
    """A cluster of three nodes, each with a disk that can be made sick."""
    try:
        preloaded = library()
    except NoSickDisks as problem:
        need(False, str(problem))
        raise
    cluster = LocalCluster(nodes=3, groups=len(GROUPS), environment={"LD_PRELOAD": str(preloaded)})
    disks = {node: SickDisk(cluster.data_dir(node).parent) for node in cluster.nodes}
    with cluster:
        yield cluster, disks
    for disk in disks.values():
        disk.close()


@pytest.fixture
def cluster(world: tuple[LocalCluster, dict[int, SickDisk]]) -> LocalCluster:
    return world[0]


@pytest.fixture
def disks(world: tuple[LocalCluster, dict[int, SickDisk]]) -> Iterator[dict[int, SickDisk]]:
    yield world[1]
    for disk in world[1].values():
        disk.tell()


@pytest.fixture
def admin(cluster: LocalCluster, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Admin:
    return Admin(cluster.endpoints, capsys, monkeypatch)


def leaders(cluster: LocalCluster) -> set[int]:
    return {cluster.leader(group) for group in GROUPS}


def write(cluster: LocalCluster, megabytes: int, value: bytes = b"x") -> None:
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as kv:
        for number in range(megabytes):
            kv.put(f"key {number % 9}", value * 1_000_000)


def problems(admin: Admin) -> dict[tuple[str, int | None], str]:
    """(kind, node) -> text."""
    if admin("--yes -o json cluster health") == 0:
        return {}
    return {(one["kind"], one["node"]): one["text"] for one in json.loads(admin.out)["problems"]}


def test_others_lead_while_a_disk_is_full_and_the_node_comes_back_by_itself(
    cluster: LocalCluster, disks: dict[int, SickDisk], admin: Admin
) -> None:
    """Not one write is refused; the full node's log waits for room, and then holds all that it missed."""
    write(cluster, 1)
    pids = {node: cluster.pid(node) for node in cluster.nodes}
    until(lambda: admin("leader balance") == 0, "who is to lead leads")
    victim = cluster.leader(1)
    disks[victim].tell(full=True)
    until(lambda: victim not in leaders(cluster), "others lead")
    write(cluster, MORE_THAN_A_LOG_HAS_READY, b"y")
    until(lambda: "its log waits" in problems(admin).get(("disk_full", victim), ""))
    assert victim not in leaders(cluster)
    disks[victim].tell()
    until(lambda: admin("cluster health") == 0, "it has caught up")
    until(lambda: victim in leaders(cluster), "it leads what it is to lead")
    assert {node: cluster.pid(node) for node in cluster.nodes} == pids
    assert "Traceback" not in cluster.log(victim, 1000)
    until(lambda: len({row["applied"] for row in replicas(admin, 1)}) == 1)


def replicas(admin: Admin, group: int) -> list[dict[str, int]]:
    found = admin.json("cluster status")["groups"]
    rows: list[dict[str, int]] = next(one for one in found if one["id"] == group)["replicas"]
    return rows


def test_with_full_disks_everywhere_new_data_is_refused_and_the_rest_is_served(
    cluster: LocalCluster, disks: dict[int, SickDisk], admin: Admin
) -> None:
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as kv:
        kv.put("full", b"1")
        for disk in disks.values():
            disk.tell(full=True)
        until(lambda: refuses(kv))
        until(lambda: {node for kind, node in problems(admin) if kind == "disk_full"} == set(cluster.nodes))
        found = kv.get("full")
        assert found is not None
        assert kv.delete("full")
        for disk in disks.values():
            disk.tell()
        until(lambda: not refuses(kv))
    until(lambda: admin("cluster health") == 0)


def refuses(kv: raftkv.Client) -> bool:
    try:
        kv.put("refused", b"1")
    except raftkv.NoSpace:
        return True
    return False


def test_a_node_starts_on_a_full_disk(cluster: LocalCluster, disks: dict[int, SickDisk], admin: Admin) -> None:
    """It needs no room to be there, and has the same again as before."""
    node = cluster.nodes[-1]
    cluster.kill(node)
    disks[node].tell(full=True)
    cluster.restart(node)
    until(lambda: ("disk_full", node) in problems(admin))
    disks[node].tell()
    until(lambda: admin("cluster health") == 0)


def test_a_new_node_does_not_start_on_a_full_disk_and_says_why(disks: dict[int, SickDisk]) -> None:
    with pytest.raises(Exception, match="No space left on device") as refused:
        start_on_a_full_disk()
    assert "Traceback" not in str(refused.value)


def start_on_a_full_disk() -> None:
    cluster = LocalCluster(nodes=1, groups=1, environment={"LD_PRELOAD": str(library())})
    try:
        disk = SickDisk(cluster.data_dir(1).parent)
        disk.tell(full=True)
        cluster.start()
    finally:
        cluster.close()
