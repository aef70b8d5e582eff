"""Guarantee: a node that is started at other addresses serves on there, and nobody else can move it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from functools import partial

import pytest

import raftkv
from faults.abuse.peer import Impostor, identity_of, secret_of
from raftkv.client.admin import AdminClient
from raftkv.local.ports import free_ports
from raftkv.testing import LocalCluster
from tests.waiting import PATIENCE, until

Pair = tuple[str, str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, groups=2) as running:
        with raftkv.Client(running.endpoints, timeout=PATIENCE) as client:
            client.put("before", b"x")
        yield running


def places(endpoints: str) -> dict[int, Pair]:
    async def main() -> dict[int, Pair]:
        async with AdminClient(endpoints, timeout=PATIENCE) as client:
            return {node.id: (node.address, node.peer_address) for node in (await client.state()).map.nodes}

    return asyncio.run(main())


def free_pair() -> Pair:
    one, two = (f"127.0.0.1:{port}" for port in free_ports(2))
    return one, two


def move(cluster: LocalCluster, node: int) -> None:
    """``node``, which does not run, is at other addresses from now on, as its own file says and no other."""
    here = cluster._processes.node(node)
    text, new = here.config.read_text(), free_pair()
    for before, after in zip((here.address, here.peer_address), new, strict=True):
        assert before in text
        text = text.replace(before, after)
    here.config.write_text(text)
    here.address, here.peer_address = new


def test_nodes_that_are_started_elsewhere_serve_on(cluster: LocalCluster) -> None:
    """One after the other, until none is where it was; clients that know one node find the rest."""
    before = places(cluster.endpoints)
    for node in cluster.nodes:
        assert cluster.stop_node(node, PATIENCE)
        move(cluster, node)
        cluster.restart(node, PATIENCE)
        others = ",".join(cluster.address(other) for other in cluster.nodes if other != node)
        until(partial(_noted, others, node, (cluster.address(node), cluster.peer_address(node))))
    found = places(cluster.endpoints)
    assert {one for pair in found.values() for one in pair}.isdisjoint(one for pair in before.values() for one in pair)
    with raftkv.Client(cluster.address(2), timeout=PATIENCE) as client:
        record = client.get("before")
        assert record is not None
        assert record.value == b"x"
        for number in range(20):
            client.put(f"after{number}", b"y")
    logs = "".join(cluster.log(node, 10_000) for node in cluster.nodes)
    assert all(f"node {node} is reached at {found[node][0]} and {found[node][1]} now" in logs for node in cluster.nodes)
    # The others' files still say where all were: the saved maps are what counts.
    cluster.kill_all()
    cluster.start(PATIENCE)
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        client.put("at last", b"z")


def _noted(endpoints: str, node: int, pair: Pair) -> bool:
    return places(endpoints)[node] == pair


def claims(cluster: LocalCluster, node: int, pair: Pair, to: int) -> None:
    """A process that knows the secret and the incarnation of ``node`` says as ``node`` that it has moved."""
    impostor = Impostor(identity_of(cluster.cluster_id, node, cluster.data_dir(node)), to, secret_of(cluster.folder))
    host, port = cluster.peer_address(to).split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(impostor.begin())
        while not impostor.welcomed:
            connection.sendall(impostor.shake(connection.recv(65536)))
        connection.sendall(impostor.say(["address", *pair]))
        # Until it is dropped, as the node itself comes back, or nothing has happened for long enough.
        connection.settimeout(1.0)
        try:
            while connection.recv(65536):
                pass
        except OSError:
            pass


class Listening(threading.Thread):
    """Somebody who listens and answers nothing; ``visits``: how often a node has looked for another one there."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        host, port = address.split(":")
        self.socket = socket.create_server((host, int(port)))
        self.visits = 0

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                self.visits += bool(connection.recv(65536))


def test_nobody_who_is_not_that_node_moves_it(cluster: LocalCluster) -> None:
    """Not even with the secret of all nodes: while it lives it is found where it is, and else only where it answers."""
    known, stolen = places(cluster.endpoints), free_pair()
    listening = Listening(stolen[1])
    listening.start()
    for to in (1, 2):
        claims(cluster, 3, stolen, to)
    assert places(cluster.endpoints) == known
    cluster.kill(3)

    def looked_for() -> bool:
        for to in (1, 2):
            claims(cluster, 3, stolen, to)
        return listening.visits > 0

    until(looked_for)
    assert places(",".join(cluster.address(node) for node in (1, 2))) == known
    cluster.restart(3, PATIENCE)
    listening.socket.close()
    with raftkv.Client(cluster.address(3), timeout=PATIENCE) as client:
        client.put("after", b"x")
    assert places(cluster.endpoints) == known


def test_another_members_address_cannot_be_taken(cluster: LocalCluster) -> None:
    known, two = places(cluster.endpoints), cluster._processes.node(2)
    text = two.config.read_text()
    # Only the address that clients are told: it listens, and is reached by nodes, where it was.
    head, section, tail = text.partition("[node]\n")
    changed = tail.replace(f'address = "{two.address}"', f'address = "{cluster.address(1)}"', 1)
    assert changed != tail
    two.config.write_text(head + section + changed)
    cluster.restart(2, PATIENCE)
    told = f"node 2 says that it is reached at {cluster.address(1)} and {two.peer_address}: "
    until(lambda: any(told in cluster.log(node, 10_000) for node in cluster.nodes))
    assert places(cluster.endpoints) == known
