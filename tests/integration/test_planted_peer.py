"""One that speaks as a node of the cluster, and sends what no node sends, costs its own connection and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

import raftkv
from faults.abuse.peer import Impostor, identity_of, secret_of
from faults.planted.maps import forged
from raftkv import limits
from raftkv.client.admin import AdminClient
from raftkv.commands.base import Command
from raftkv.commands.meta import ChangeCluster
from raftkv.commands.moving import ImportChunk
from raftkv.commands.records import Cas, Put
from raftkv.commands.results import Result
from raftkv.frontend.port import Origin
from raftkv.local.status import probe
from raftkv.node.messages import answer, ask
from raftkv.peer.frames import Encoder
from raftkv.storage.format import FORMAT
from raftkv.testing import LocalCluster
from shards.map import ShardMap
from tests.waiting import PATIENCE, until

PRETENDED = 3
MB = 1024 * 1024
FAR = 2**62


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Node 3 is dead: it would dial again and take the place of the connections that speak in its name."""
    with LocalCluster(nodes=3, groups=2) as running:
        running.kill(PRETENDED)
        with raftkv.Client(running.endpoints, timeout=PATIENCE) as client:
            client.put("before", b"x")
        yield running


class Peer:
    """A connection to a node."""

    def __init__(self, cluster: LocalCluster, node: int) -> None:
        identity = identity_of(cluster.cluster_id, PRETENDED, cluster.data_dir(PRETENDED))
        host, port = cluster.peer_address(node).split(":")
        self.connection = socket.create_connection((host, int(port)), timeout=PATIENCE)
        self.impostor = Impostor(identity, node, secret_of(cluster.folder))
        self.connection.sendall(self.impostor.begin())
        while not self.impostor.welcomed:
            self.connection.sendall(self.impostor.shake(self.connection.recv(65536)))

    def read(self) -> list[list[Any]]:
        """The next frames, [] once the node has closed the connection."""
        while True:
            try:
                data = self.connection.recv(65536)
            except ConnectionError:
                return []
            if not data:
                return []
            if frames := self.impostor.read(data):
                return frames

    def send(self, *messages: Any) -> None:
        self.connection.sendall(self.impostor.say(*messages))

    def closed_by(self, body: bytes) -> bool:
        """Whether a frame of this body ends the connection."""
        try:
            self.connection.sendall(self.impostor.frame(body))
        except ConnectionError:
            return True
        return self.read() == []


@contextmanager
def peer(cluster: LocalCluster, node: int) -> Iterator[Peer]:
    made = Peer(cluster, node)
    with made.connection:
        yield made


def _serves(cluster: LocalCluster) -> None:
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        for number in range(20):
            client.put(f"key{number}", b"x")
    assert [node for node in (1, 2) if cluster.pid(node) is None] == []
    for node in (1, 2):
        assert "Traceback" not in cluster.log(node, 10_000)


def _peak_kb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


@pytest.mark.parametrize("item", [b"\x80", b"\x90", b"\xa2ab"], ids=["maps", "arrays", "texts"])
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the kernel's figures of a process")
def test_a_frame_of_many_items_takes_little_memory(cluster: LocalCluster, item: bytes) -> None:
    """15.7 MB of empty maps took 1 GB."""
    count = min(MB - 8, 15 * MB // len(item) // 5)
    parts = 15 * MB // (count * len(item))
    body = b"\xdd" + parts.to_bytes(4, "big") + (b"\xdd" + count.to_bytes(4, "big") + item * count) * parts
    pid = cluster.pid(1)
    assert pid is not None
    before = _peak_kb(pid)
    with peer(cluster, 1) as connection:
        assert connection.closed_by(body)
    assert _peak_kb(pid) - before < 300_000
    _serves(cluster)


LARGE = b"x" * (limits.MAX_FRAME_BYTES - 64)
"""Fits into the frame that brings it; an entry of the log has some more around it."""
TOO_LARGE: dict[str, list[Command]] = {
    "value": [Put(5, b"k", LARGE)],
    "expected": [Cas(5, b"k", b"v", expected=LARGE)],
    "key": [Put(5, LARGE, b"v")],
    "several": [Put(5, b"%d" % at, b"x" * MB, client=b"c" * 16, seq=at, first=1) for at in range(1, 15)],
    "a step of a move": [ImportChunk(1, 1, 1, b"", LARGE)],
    "a command of the meta group": [ChangeCluster(0, b"t" * 16, "plan", LARGE)],
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_operations_too_large_for_the_log_do_not_reach_it(cluster: LocalCluster, name: str) -> None:
    """One of 16 MiB got into the log, did not fit into a frame to the others, and ended the leader."""
    ops = TOO_LARGE[name]
    for node in (1, 2):
        with peer(cluster, node) as connection:
            connection.send(ask(1, 5000, Origin(1), ops), 7)
            # The answers go to the real node 3, which is dead; the pong says that the message was read.
            [[[number, _, _]]] = connection.read()
            assert number == 7
    _serves(cluster)


def test_results_and_sizes_of_no_node_end_the_connection(cluster: LocalCluster) -> None:
    messages: list[Any] = [
        ask(1, 1000, Origin(1), [Put(5, b"k", b"v", client=b"c" * 17, seq=1, first=1)]),
        ask(1, 1000, Origin(1), [Put(5, b"k", b"v", client=LARGE, seq=1, first=1)]),
        answer([(1, 0, Result(0, 2**64 - 1))]),
        answer([(1, 0, Result(0, 1, detail="x" * 100_000))]),
        answer([(1, 0, Result(2**40, 1))]),
        ["leads", [0] * 100_000],
        ["leads", [None]],
        ["epoch", -1],
        ["map", b"\x80" * (4 * MB)],
        ["map", b"\x81\xa6format\x02"],
        [1, 1, 1, 1, 1, 1, 1, 1, [[1, b"x" * (limits.MAX_COMMAND_BYTES + 1)]]],
    ]
    encoder = Encoder()
    for message in messages:
        for node in (1, 2):
            with peer(cluster, node) as connection:
                assert connection.closed_by(b"\x91" + encoder.pack(message))
    _serves(cluster)


def forged_map(cluster: LocalCluster, gone: int = 0) -> bytes:
    """A map of far in the future: the groups have exchanged their slots, or, if ``gone`` is a node, it was removed."""

    async def main() -> ShardMap:
        async with AdminClient(cluster.endpoints, timeout=PATIENCE) as client:
            return (await client.state()).map

    known = asyncio.run(main())
    exchanged = replace(known, epoch=FAR, index=FAR, owners=tuple(3 - owner for owner in known.owners))
    packed: bytes = msgpack.packb((forged(known, gone) if gone else exchanged).to_wire())
    return packed


def _is_told(cluster: LocalCluster, node: int, shard_map: bytes) -> None:
    """``node`` has heard of the map, and does not believe it any more."""
    with peer(cluster, node) as connection:
        connection.send(["map", shard_map], 7)
        assert connection.read()[0][0][0] == 7

    def epoch() -> int:
        status = probe(cluster.address(node))
        assert status is not None
        return status.map_epoch

    until(lambda: epoch() < FAR)


def test_a_forged_removal_ends_nobody(cluster: LocalCluster) -> None:
    """Three forged "you are removed" ended three processes."""
    pids = [cluster.pid(node) for node in (1, 2)]
    for gone in (1, 2):
        for node in (1, 2):
            _is_told(cluster, node, forged_map(cluster, gone))
    assert [cluster.pid(node) for node in (1, 2)] == pids
    for node in (1, 2):
        assert f"dropped a shard map of epoch {FAR} and index {FAR} that node 3 had sent" in cluster.log(node, 10_000)
    _serves(cluster)


def test_a_forged_map_breaks_no_read_and_does_not_outlive_a_restart(cluster: LocalCluster) -> None:
    """One with epoch 2^62 broke 185 of 300 reads, and outlived a restart of all nodes."""
    data = forged_map(cluster)
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        for number in range(60):
            client.put(f"k{number}", b"v")
            if number % 20 == 0:
                for node in (1, 2):
                    _is_told(cluster, node, data)
            assert client.get(f"k{number}") is not None
    for node in (1, 2):
        with peer(cluster, node) as connection:
            connection.send(["map", data], 7)
            assert connection.read()[0][0][0] == 7
            cluster.restart(node)
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        assert [key for key in range(60) if client.get(f"k{key}") is None] == []


def test_damaged_files_stop_the_start_with_a_line(cluster: LocalCluster) -> None:
    """Of the file, with its place and the reason; a traceback says none of it."""
    path = cluster.data_dir(PRETENDED) / "identity.json"
    whole = path.read_bytes()
    text = json.dumps({"format": FORMAT}).encode()
    path.write_bytes(b"%b\ncrc32 %08x\n" % (text, zlib.crc32(text)))
    with pytest.raises(raftkv.RaftKVError):
        cluster.restart(PRETENDED)
    log = cluster.log(PRETENDED, 100)
    assert f"{os.fspath(path)}: damaged at byte 0: the node's identity is not valid: cluster_id is missing" in log
    assert "Traceback" not in log
    path.write_bytes(whole)
    cluster.restart(PRETENDED)
    cluster.wait_ready()
