"""Nodes with few file descriptors, and strangers who hold connections to all their ports."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import raftkv
from raftkv.addresses import parse_address
from raftkv.testing import LocalCluster
from tests.waiting import PATIENCE, until

LIMIT = 256
STRANGERS = 260
FEW_FILES = f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (200, {LIMIT}))
from raftkv.cli.main import main
main()
"""
BEGUN = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
"""What a client of HTTP/2 says first."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("few files")
    (folder / "few_files.py").write_text(FEW_FILES)
    environment = {"PYTHONPATH": str(folder)}
    with LocalCluster(3, 1, main="few_files", environment=environment, metrics=True) as found:
        yield found


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="needs /proc")
def test_the_soft_limit_is_raised_to_the_hard_one(cluster: LocalCluster) -> None:
    for node in cluster.nodes:
        line = next(line for line in limits_of(cluster, node) if line.startswith("Max open files"))
        assert line.split()[3:5] == [str(LIMIT), str(LIMIT)]
        until(lambda node=node: f"{LIMIT} file descriptors, " in cluster.log(node))  # type: ignore[misc]


def limits_of(cluster: LocalCluster, node: int) -> list[str]:
    return Path(f"/proc/{cluster.pid(node)}/limits").read_text().splitlines()


@pytest.mark.parametrize("kind", ["silent", "HTTP/2", "peer", "metrics"])
def test_strangers_who_hold_all_connections_end_no_node_and_disturb_no_client(cluster: LocalCluster, kind: str) -> None:
    """The log gets its next segments, who is connected goes on, and newcomers are served when the strangers leave."""
    pids = [cluster.pid(node) for node in cluster.nodes]
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as kv:
        kv.put("before", b"1")
        strangers = [stranger for node in cluster.nodes for stranger in connect(cluster, node, kind)]
        try:
            for number in range(40):
                kv.put(f"key {number % 5}", bytes(1_000_000))
            assert [cluster.pid(node) for node in cluster.nodes] == pids
            if kind == "HTTP/2":
                until(lambda: all("raftkv.node.problems: descriptors: " in cluster.log(n) for n in cluster.nodes))
        finally:
            for stranger in strangers:
                stranger.close()
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as newcomer:
        newcomer.put("after", b"1")
    assert [cluster.pid(node) for node in cluster.nodes] == pids


def connect(cluster: LocalCluster, node: int, kind: str) -> list[socket.socket]:
    ports = {"peer": cluster.peer_address, "metrics": cluster.metrics_address}
    host, port = parse_address(ports.get(kind, cluster.address)(node))[:2]
    found = []
    for _ in range(STRANGERS):
        stranger = socket.create_connection((host, port), timeout=PATIENCE)
        if kind == "HTTP/2":
            try:
                stranger.sendall(BEGUN)
            except OSError:
                pass  # it was not let in
        found.append(stranger)
    return found
