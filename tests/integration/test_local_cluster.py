"""Real node processes: what was acknowledged is there after kill -9 of a leader, and of all nodes at once."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import raftkv
from raftkv.clock import SystemClock
from raftkv.errors import ConfigError
from raftkv.local.node import LocalError
from raftkv.local.ports import free_ports
from raftkv.local.status import probe
from raftkv.testing import LocalCluster
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).resolve().parents[2]
_CLOCK = SystemClock()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, groups=2) as running:
        yield running


@pytest.fixture
def healthy(cluster: LocalCluster) -> LocalCluster:
    """The module's cluster with all nodes up, whatever the test before has done to it."""
    for node in cluster.nodes:
        cluster.resume(node)
    cluster.start()
    return cluster


def write(client: raftkv.Client, prefix: str, count: int = 50) -> dict[bytes, bytes]:
    written = {f"{prefix}:{i}".encode(): f"{prefix} {i}".encode() for i in range(count)}
    for key, value in written.items():
        client.put(key, value, timeout=PATIENCE)
    return written


def read(client: raftkv.Client, keys: Iterator[bytes]) -> dict[bytes, bytes | None]:
    found = {key: client.get(key, timeout=PATIENCE) for key in keys}
    return {key: record.value if record else None for key, record in found.items()}


def test_status_tells_nodes_and_groups(healthy: LocalCluster) -> None:
    status: dict[str, Any] = {}

    def whole() -> bool:
        """Not while groups elect."""
        status.update(healthy.status())
        return bool(status["ready"]) and None not in [group["leader"] for group in status["groups"]]

    until(whole)
    assert [(node["id"], node["state"]) for node in status["nodes"]] == [(1, "ready"), (2, "ready"), (3, "ready")]
    assert [node["pid"] for node in status["nodes"]] == [healthy.pid(node) for node in healthy.nodes]
    assert [group["id"] for group in status["groups"]] == [0, 1, 2]
    for group in status["groups"]:
        assert group["replicas"] == [1, 2, 3]
        assert group["leader"] in healthy.nodes
        assert group["term"] >= 1
        assert group["commit"] >= group["applied"] >= 1


def test_acknowledged_writes_survive_the_kill_of_a_leader(healthy: LocalCluster) -> None:
    with raftkv.Client(healthy.endpoints, timeout=PATIENCE) as client:
        written = write(client, "before")
        leader = healthy.leader(1)
        healthy.kill(leader)
        assert healthy.pid(leader) is None
        written |= write(client, "without")
        assert read(client, iter(written)) == written
        assert healthy.leader(1) != leader
        healthy.restart(leader)
        assert read(client, iter(written)) == written


def test_acknowledged_writes_survive_the_kill_of_all_nodes_at_once(healthy: LocalCluster) -> None:
    with raftkv.Client(healthy.endpoints, timeout=PATIENCE) as client:
        written = write(client, "all")
    healthy.kill_all()
    assert [node["state"] for node in healthy.status()["nodes"]] == ["died"] * 3
    healthy.start()
    with raftkv.Client(healthy.endpoints, timeout=PATIENCE) as client:
        assert read(client, iter(written)) == written


def test_a_paused_leader_is_replaced_and_does_not_answer_from_the_past(healthy: LocalCluster) -> None:
    with raftkv.Client(healthy.endpoints, timeout=PATIENCE) as client:
        write(client, "paused")
        leader = healthy.leader(2)
        healthy.pause(leader)
        written = {key: value + b"!" for key, value in write(client, "paused").items()}
        for key, value in written.items():
            client.put(key, value, timeout=PATIENCE)
        healthy.resume(leader)
        with raftkv.Client(healthy.address(leader), timeout=PATIENCE) as asked_at_the_old_leader:
            assert read(asked_at_the_old_leader, iter(written)) == written


def test_a_node_asked_to_stop_ends_by_itself_and_finds_its_data_again(healthy: LocalCluster) -> None:
    with raftkv.Client(healthy.endpoints, timeout=PATIENCE) as client:
        written = write(client, "stopped")
    assert healthy.stop(PATIENCE) == {1: True, 2: True, 3: True}
    assert [node["state"] for node in healthy.status()["nodes"]] == ["stopped"] * 3
    healthy.start()
    with raftkv.Client(healthy.endpoints, timeout=PATIENCE) as client:
        assert read(client, iter(written)) == written


def test_a_node_that_dies_while_starting_is_told_with_its_log(tmp_path: Path) -> None:
    cluster = LocalCluster(nodes=1, groups=1, folder=tmp_path)
    config = tmp_path / "node-1" / "node.toml"
    config.write_text(config.read_text().replace("[cluster]", "[cluster]\nnonsense = 1"))
    try:
        with pytest.raises(LocalError, match="ended while starting") as caught:
            cluster.start(timeout=PATIENCE)
        assert "cluster.nonsense: unknown key" in str(caught.value)
    finally:
        cluster.close()
    assert config.exists(), "a folder that was given stays"


def test_options_that_do_not_fit_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.replicas"):
        LocalCluster(nodes=2, replicas=3, folder=tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


class Relay:
    """A proxy before a node: forwards bytes to ``target``, which may be told later, and counts connections."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self.target = ""
        self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", port))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            if not self.target:
                return
            host, _, port = self.target.rpartition(":")
            far_reader, far_writer = await asyncio.open_connection(host, int(port))
            self.connections += 1
            with contextlib.closing(far_writer):
                await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def test_proxies_stand_before_a_node_that_joins_and_a_module_of_the_test_runs_as_each_node(tmp_path: Path) -> None:
    """Both also after a restart."""
    (tmp_path / "instrumented.py").write_text(
        "import os, sys\nfrom raftkv.cli.main import main\n"
        "print('instrumented:', os.environ['MARK'], file=sys.stderr)\nmain()\n"
    )
    ports = free_ports(2)
    to_new, to_old = Relay(ports[0]), Relay(ports[1])
    environment = {"PYTHONPATH": str(tmp_path), "MARK": "yes"}
    try:
        with LocalCluster(
            1, 1, folder=tmp_path / "c", dial={(1, 2): to_new.address}, main="instrumented", environment=environment
        ) as cluster:
            to_old.target = cluster.peer_address(1)
            # The newcomer has its place only once it has joined, so the way to it opens behind that.
            assert cluster.add_node(dial={1: to_old.address, 9: "127.0.0.1:1"}) == 2
            assert to_old.connections >= 1
            assert cluster.log(2).count("instrumented: yes") == 1
            to_new.target = cluster.peer_address(2)
            until(lambda: to_new.connections >= 1)
            before = to_old.connections
            cluster.restart(2)
            until(lambda: to_old.connections > before)
            assert cluster.log(2).count("instrumented: yes") == 2
            assert cluster.log(1).count("instrumented: yes") == 1
        assert not (tmp_path / "c" / "cluster.json").read_text().count("instrumented")
    finally:
        to_new.close()
        to_old.close()


def test_two_nodes_cannot_use_one_data_folder(healthy: LocalCluster) -> None:
    """A second process on the folder of a running node ends at once and leaves the node alone."""
    config = healthy.folder / "node-1" / "node.toml"
    command = [sys.executable, "-m", "raftkv.cli.main", "serve", "--config", str(config)]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert second.returncode == 1
    assert "another process uses this data folder" in second.stderr
    assert "Traceback" not in second.stderr
    until(lambda: (status := probe(healthy.address(1))) is not None and status.ready)


def test_the_plugin_gives_tests_a_cluster(raftkv_cluster: LocalCluster) -> None:
    with raftkv.Client(raftkv_cluster.endpoints, timeout=PATIENCE) as client:
        assert client.put("k", "v").version >= 1
        record = client.get("k")
        assert record is not None
        assert record.value == b"v"
