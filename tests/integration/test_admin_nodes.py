"""Nodes join, get replicas, are drained, removed and replaced, while the cluster serves and keeps all records."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import raftkv
from raftkv.local.ports import free_ports
from raftkv.local.status import probe
from raftkv.testing import LocalCluster
from tests.admin_world import Admin
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).resolve().parents[2]
RECORDS = {b"key:%d" % number: b"value %d" % number for number in range(500)}


def fill(endpoints: str) -> None:
    with raftkv.Client(endpoints, timeout=PATIENCE) as kv:
        for key, value in RECORDS.items():
            kv.put(key, value)


def check(endpoints: str) -> None:
    with raftkv.Client(endpoints, timeout=PATIENCE) as kv:
        assert {record.key: record.value for record in kv.scan()} == RECORDS


def becomes_healthy(admin: Admin) -> None:
    """Groups that have new voters may be handing over to the leader that they are to have."""
    until(lambda: admin("cluster health") == 0)


def test_a_cluster_grows_and_shrinks(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster(nodes=3, groups=3, slots=256) as cluster:
        admin = Admin(cluster.endpoints, capsys, monkeypatch)
        fill(cluster.endpoints)
        assert admin("node drain 3 --yes") == 4
        assert "too few nodes are left" in admin.err

        new = cluster.add_node()
        assert new == 4
        assert admin("node list") == 0
        assert admin("node add 4 --wait --wait-timeout 100") == 0, admin.err
        nodes = {node["id"]: node["replicas"] for node in admin.json("node list")["nodes"]}
        assert nodes[4] >= 2
        becomes_healthy(admin)

        assert admin("node drain 2 --yes --wait --wait-timeout 100") == 0, admin.err
        assert "draining" in [one["kind"] for one in admin.json("cluster health", code=5)["problems"]]
        assert admin("node remove 2 --yes") == 0, admin.err
        # It learns that it is no member any more, and ends.
        until(lambda: cluster.pid(2) is None)
        becomes_healthy(admin)
        check(cluster.endpoints)
        assert admin("check consistency") == 0, admin.out

        # The folder remembers who belongs to the cluster.
        states = ["ready", "removed", "ready", "ready"]
        until(lambda: [node["state"] for node in cluster.status()["nodes"]] == states)
        cluster.stop()
        cluster.start()
        assert cluster.pid(2) is None
        check(cluster.endpoints)


def test_a_dead_node_is_replaced_by_one_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalCluster(nodes=3, groups=2, slots=256) as cluster:
        admin = Admin(cluster.endpoints, capsys, monkeypatch)
        fill(cluster.endpoints)
        cluster.kill(cluster.leader(1))
        dead = next(node for node in cluster.nodes if cluster.pid(node) is None)
        new = cluster.add_node()
        assert admin("node replace", str(dead), str(new), "--yes", "--wait-timeout", "0.01") == 6
        assert admin("node replace", str(dead), str(new), "--yes", "--wait-timeout", "100") == 0, admin.err
        assert admin("node replace", str(dead), str(new), "--yes") == 0, admin.err
        assert "was replaced and removed before" in admin.out
        becomes_healthy(admin)
        report = admin.json("map show")
        assert report["removed"] == [dead]
        assert all(new in group["voters"] for group in report["groups"])
        check(cluster.endpoints)

        # It never comes back.
        cluster.restart(dead, wait=False)
        until(lambda: cluster.pid(dead) is None)
        assert "removed" in cluster.log(dead)


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "raftkv.cli.main", "serve", "--data-dir", str(folder), *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)


def test_serve_joins_and_comes_back_as_the_same_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalCluster(nodes=1, groups=1, slots=256) as cluster:
        admin = Admin(cluster.endpoints, capsys, monkeypatch)
        fill(cluster.endpoints)
        folder = tmp_path / "new"
        first, second = (f"127.0.0.1:{port}" for port in free_ports(2))
        joining = ["--join", cluster.endpoints, "--address", first, "--peer-address", second]
        joining += ["--secret-file", str(cluster.folder / "peer.secret")]
        joining += [f"--token={admin.json('node add')['token']}"]
        for _ in range(2):
            with serving(folder, *joining) as process:
                until(lambda: (status := probe(first)) is not None and status.ready)
                assert admin("node add 2 --wait --wait-timeout 100") == 0, admin.err
                assert [node["id"] for node in admin.json("node list")["nodes"]] == [1, 2]
            assert process.returncode == 0
        # The new one may have all of it, alone.
        with serving(folder, *joining):
            until(lambda: (status := probe(first)) is not None and status.ready)
            becomes_healthy(admin)
            check(first)
