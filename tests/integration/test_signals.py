"""Guarantee: signals and scans do not end real nodes, and their logs are bounded, reloaded and complete."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import raftkv
from raftkv.local.cluster import LocalProcesses
from raftkv.local.node import LocalError, LocalNode
from raftkv.local.process import Process
from raftkv.local.shape import new_shape
from raftkv.local.status import probe
from raftkv.testing import LocalCluster
from tests import forking
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).resolve().parents[2]

STRAYS = ("SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGPIPE", "SIGXFSZ", "SIGRTMIN", "SIGHUP")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    # Lines of a size at which the log is rotated soon.
    with LocalCluster(nodes=1, groups=1, node={"log_max_bytes": 20_000, "log_backups": 2}) as running:
        yield running


@pytest.fixture
def node(cluster: LocalCluster) -> LocalNode:
    """The module's node, running."""
    cluster.start()
    return cluster._processes.node(1)


def send(node: LocalNode, name: str) -> None:
    process = node.process()
    assert process is not None
    os.kill(process.pid, getattr(signal, name, 0))


def edit(node: LocalNode, before: str, after: str) -> None:
    text = node.config.read_text()
    assert re.search(before, text)
    node.config.write_text(re.sub(before, after, text))


def said(node: LocalNode, text: str) -> int:
    return node.log_tail(10_000).count(text)


def reload(node: LocalNode, outcome: str = "configuration reloaded") -> None:
    before = said(node, outcome)
    send(node, "SIGHUP")
    until(lambda: said(node, outcome) > before)


def test_signals_that_do_not_mean_to_end_a_node_do_not(cluster: LocalCluster, node: LocalNode) -> None:
    pid = cluster.pid(1)
    assert pid is not None
    assert os.getsid(pid) == pid, "no terminal's closing or Ctrl-C reaches it"
    for name in STRAYS:
        send(node, name)
    until(lambda: said(node, "SIGUSR1: ") and said(node, "SIGUSR2: ") and said(node, "configuration reloaded"))
    with raftkv.Client(cluster.endpoints) as client:
        client.put("k", b"v", timeout=PATIENCE)
    assert cluster.pid(1) == pid


def test_strays_at_the_start_do_not_end_a_node_either(
    cluster: LocalCluster, node: LocalNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it imports what it needs."""
    monkeypatch.setattr("raftkv.local.node.spawn", forking.fresh)
    cluster.stop_node(1)
    process = node.start()
    strays = sum(1 << getattr(signal, name) - 1 for name in STRAYS)
    until(lambda: int(field(process, "SigIgn"), 16) & strays == strays)
    while probe(node.address, timeout=0.1) is None:
        for name in STRAYS:
            send(node, name)
    cluster.wait_ready()
    assert cluster.pid(1) == process.pid


def test_a_node_that_is_to_end_while_it_starts_ends_in_order(cluster: LocalCluster, node: LocalNode) -> None:
    cluster.stop_node(1)
    process = node.start()
    until(lambda: int(field(process, "SigCgt"), 16) & 1 << signal.SIGTERM - 1)
    send(node, "SIGTERM")
    child = node._child
    assert child is not None
    assert child.wait(PATIENCE) == 0


def field(process: Process, name: str) -> str:
    text = Path(f"/proc/{process.pid}/status").read_text()
    return next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name}:"))


def test_a_reload_takes_what_it_can_and_a_wrong_file_harms_nothing(cluster: LocalCluster, node: LocalNode) -> None:
    pid = cluster.pid(1)
    edit(node, 'log_level = "info"', 'log_level = "debug"')
    edit(node, 'reads = "lease"', 'reads = "quorum"')
    reload(node, "changed: node.reads, node.log_level")
    with raftkv.Client(cluster.endpoints) as client:
        client.put("k", b"quorum", timeout=PATIENCE)
        assert client.get("k", timeout=PATIENCE).value == b"quorum"  # type: ignore[union-attr]
    edit(node, 'log_level = "debug"', 'log_level = "loud"')
    reload(node, "configuration not reloaded, keeping the old one: ")
    assert said(node, "node.log_level: ")
    edit(node, 'log_level = "loud"', 'log_level = "info"')
    edit(node, "heartbeat = 0.1", "heartbeat = 0.05")
    reload(node, "need a restart of the node: raft.heartbeat")
    edit(node, "heartbeat = 0.05", "heartbeat = 0.1")
    edit(node, 'reads = "quorum"', 'reads = "lease"')
    reload(node)
    assert cluster.pid(1) == pid


def test_a_scan_of_the_peer_port_is_one_line(cluster: LocalCluster, node: LocalNode) -> None:
    cluster.restart(1)
    host, port = cluster.peer_address(1).split(":")
    before = node.log.stat().st_size
    for _ in range(1000):
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as scan:
            scan.sendall(b"GET / HTTP/1.1\r\nHost: raftkv\r\n\r\n")
            try:
                while scan.recv(100):
                    pass
            except ConnectionError:
                pass
    # What was left out is said at the end, if not before: a minute may pass meanwhile.
    cluster.stop_node(1)
    found = [line for line in node.log_tail(100).splitlines() if "dropped the connection from an unknown peer" in line]
    counted = sum(int(line.split(" more from ")[0].rsplit(" ", 1)[1]) if " more from " in line else 1 for line in found)
    assert counted == 1000
    assert len(found) <= 5
    assert node.log.stat().st_size < before + 5000


def test_requests_that_are_garbage_do_not_fill_the_log(cluster: LocalCluster, node: LocalNode) -> None:
    def same(data: bytes) -> bytes:
        return data

    before, told = said(node, "\n"), said(node, "Traceback")
    with grpc.insecure_channel(node.address) as channel:
        get = channel.unary_unary("/raftkv.v1.KV/Get", same, same)
        pipeline = channel.stream_stream("/raftkv.v1.KV/Pipeline", same, same)
        for _ in range(50):
            for call in (
                lambda: get(b"\xff", timeout=PATIENCE),
                lambda: list(pipeline(iter([b"\xff"]), timeout=PATIENCE)),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    call()
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said(node, "Traceback") == told
    assert said(node, "\n") < before + 100


def test_the_log_rotates_and_keeps_what_is_not_logged(cluster: LocalCluster, node: LocalNode) -> None:
    backup = node.log.with_name("node.log.1")

    def full() -> bool:
        send(node, "SIGUSR1")
        return backup.exists() and said(node, "SIGUSR1: ") > 200

    until(full)
    kept = sorted(path.name for path in node.folder.glob("node.log*"))
    assert kept in (["node.log", "node.log.1"], ["node.log", "node.log.1", "node.log.2"])
    assert all(path.stat().st_size < 25_000 for path in node.folder.glob("node.log*"))
    assert len(cluster.log(1, 150).splitlines()) == 150, "the end of the log goes over both files"
    node.log.rename(node.folder / "moved.log")
    reload(node)
    send(node, "SIGQUIT")
    until(lambda: cluster.pid(1) is None)
    text = node.log.read_text()
    assert "raftkv/node/main.py" in text, "stderr has followed the log file"
    assert "configuration reloaded" in text


def test_a_log_file_that_cannot_be_opened_is_told_at_the_start(cluster: LocalCluster, node: LocalNode) -> None:
    cluster.stop_node(1)
    command = [sys.executable, "-m", "raftkv.cli.main", "serve", "--config", str(node.config)]
    done = subprocess.run(
        [*command, "--log-file", str(node.folder / "none" / "x")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "node.log_file: cannot write" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_node_that_ends_while_starting_shows_the_end_of_its_log(tmp_path: Path, cluster: LocalCluster) -> None:
    processes = LocalProcesses.create(tmp_path, new_shape(cluster._processes.shape.places, 1, 1))
    only = processes.nodes[0]
    only.data.write_text("a file where a folder belongs")
    cluster.stop_node(1)
    processes.start_missing()
    with pytest.raises(LocalError, match="ended while starting; the end of .*node.log:\n(?s:.*)data"):
        processes.wait_ready()
    assert " C node 1 raftkv.node.main: node stopped: " in only.log_tail()
    assert only.finish(PATIENCE)


def test_a_node_in_a_terminal_survives_its_closing(cluster: LocalCluster, node: LocalNode) -> None:
    cluster.stop_node(1)
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "raftkv.cli.main", "serve", "--config", str(node.config)])
    process = Process.of(child)
    assert process is not None
    try:
        until(lambda: probe(node.address))
        os.close(terminal)
        with raftkv.Client(cluster.endpoints) as client:
            for number in range(5):
                client.put(f"k{number}", b"v", timeout=PATIENCE)
        assert process.alive()
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        process.signal(signal.SIGKILL)


@pytest.mark.parametrize("again", ["SIGTERM", "SIGINT"])
def test_a_second_signal_while_it_ends_still_ends_in_order(cluster: LocalCluster, node: LocalNode, again: str) -> None:
    child = node._child
    assert child is not None
    before = said(node, "stopping: transferring leaderships")
    send(node, "SIGTERM")
    until(lambda: said(node, "stopping: transferring leaderships") > before or child.poll() is not None)
    child.send_signal(getattr(signal, again))
    assert child.wait(PATIENCE) == 0
    assert node.log_tail(1).endswith("stopped")
