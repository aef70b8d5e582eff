"""Addresses that cannot be, against real nodes: none gets in, and none that is in already ends a node."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raftkv
from raftkv.client.admin import AdminClient
from raftkv.clock import SystemClock
from raftkv.errors import ConditionFailed, ConfigError, InvalidArgument, RaftKVError
from raftkv.local.ports import free_ports
from raftkv.local.process import pause
from raftkv.testing import LocalCluster
from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
UNCHECKED = "from raftkv.store.meta import MetaStore\nMetaStore.check = lambda self, value, now: None\n"
BAD = [("kv-4..prod:7449", "kv-4..prod:7549"), ("x", "y"), ("h:1", "h:1"), ("0.0.0.0:1", "127.0.0.1:99999")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=2, groups=1) as started:
        yield started


def ask_to_join(endpoints: str, address: str, peer_address: str) -> int:
    async def main() -> int:
        async with AdminClient(endpoints, timeout=30.0) as client:
            token = await client.add_join_token()
            return (await client.join(address, peer_address, secrets.token_hex(16), token=token)).node

    return asyncio.run(main())


def members(cluster: LocalCluster) -> list[int]:
    async def main() -> list[int]:
        async with AdminClient(cluster.endpoints, timeout=30.0) as client:
            return [node.id for node in (await client.state()).map.nodes]

    return asyncio.run(main())


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raftkv.cli.main", "serve", *arguments],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_name_that_cannot_be_looked_up_is_refused_and_all_nodes_live_on(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    pids = [cluster.pid(node) for node in (1, 2)]
    client, peers = (f"127.0.0.1:{port}" for port in free_ports(2))
    places = ["--address", "kv-4..prod:7449", "--listen", client, "--peer-listen", peers]
    done = serve("--join", cluster.address(1), "--data-dir", str(tmp_path / "new"), *places)
    assert done.returncode == 2
    assert "address 'kv-4..prod:7449' is not of the form host:port" in done.stderr
    places = ["--address", client, "--peer-address", client, "--listen", client, "--peer-listen", peers]
    done = serve("--join", cluster.address(1), "--data-dir", str(tmp_path / "new"), *places)
    assert done.returncode == 1
    assert "is also --address" in done.stderr
    assert members(cluster) == [1, 2]
    assert [cluster.pid(node) for node in (1, 2)] == pids


@pytest.mark.parametrize(("address", "peer_address"), BAD)
def test_the_meta_group_takes_none_in_whoever_asks(cluster: LocalCluster, address: str, peer_address: str) -> None:
    with pytest.raises((InvalidArgument, ConditionFailed)):
        ask_to_join(cluster.endpoints, address, peer_address)
    assert members(cluster) == [1, 2]


def test_a_local_cluster_grows_after_an_attempt_that_was_refused(cluster: LocalCluster) -> None:
    first = f"127.0.0.1:{free_ports(1)[0]}"
    for addresses in ((first, first), (first, cluster.peer_address(1)), ("a..b:1", first)):
        with pytest.raises(RaftKVError):
            cluster.add_node(addresses=addresses)
    with pytest.raises(ConfigError, match=r"dial\.1"):
        cluster.add_node(dial={1: "a..b:1"})
    assert members(cluster) == [1, 2]
    assert cluster.add_node() == 3


def test_nodes_live_with_what_an_earlier_version_took_into_the_map(tmp_path: Path) -> None:
    (tmp_path / "unchecked.py").write_text(f"{UNCHECKED}from raftkv.cli.main import main\nmain()\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    folder = tmp_path / "c"
    with LocalCluster(2, 1, folder=folder, main="unchecked", environment=environment) as cluster:
        for number, (address, peer_address) in enumerate(BAD, start=3):
            assert ask_to_join(cluster.endpoints, address, peer_address) == number
        pids = [cluster.pid(node) for node in (1, 2)]
        told = "link to node 3: cannot connect to kv-4..prod:7549"
        _until(lambda: all(told in cluster.log(node) for node in (1, 2)))
        assert [cluster.pid(node) for node in (1, 2)] == pids
        cluster.stop()
    for node in (1, 2):
        (folder / f"node-{node}" / "node.log").unlink()
    with LocalCluster(folder=folder) as cluster:
        with raftkv.Client(cluster.endpoints, timeout=30.0) as kv:
            kv.put("k", b"v")
            assert kv.get("k")
        assert cluster.add_node() == 7
        assert members(cluster) == [1, 2, 3, 4, 5, 6, 7]
        _until(lambda: all(told in cluster.log(node) for node in (1, 2)))
        # Tried again twice a second at least, told once.
        assert [cluster.log(node, 10_000).count(told) for node in (1, 2)] == [1, 1]


def _until(condition: object, timeout: float = 60.0) -> None:
    assert callable(condition)
    end = SystemClock().now() + timeout
    while not condition():
        assert SystemClock().now() < end, "it did not become so in time"
        pause(0.05)
