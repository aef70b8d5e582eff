"""Guarantee: who is no node of the cluster changes nothing at the port for nodes, whatever it knows of the protocol."""

from __future__ import annotations

import asyncio
import os
import random
import re
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

import raftkv
from faults.abuse.peer import Impostor, identity_of, secret_of
from raftkv.client.admin import AdminClient
from raftkv.errors import ConditionFailed
from raftkv.local.ports import free_ports
from raftkv.node.credentials import VARIABLE
from raftkv.peer.frames import Decoder, Encoder, framed
from raftkv.peer.handshake import Secret
from raftkv.peer.hello import HelloRefused, Reason
from raftkv.testing import LocalCluster
from raftkv.v1 import admin_pb2
from tests.waiting import PATIENCE, until

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
GUESSED = Secret(b"a secret of another cluster", random.Random(0))


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, groups=2) as running:
        with raftkv.Client(running.endpoints, timeout=PATIENCE) as client:
            client.put("before", b"x")
        yield running


def unharmed(cluster: LocalCluster) -> None:
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        record = client.get("before")
        assert record is not None
        assert record.value == b"x"
        client.put("after", b"x")
    assert None not in [cluster.pid(node) for node in cluster.nodes]


def dialled(address: str) -> socket.socket:
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def rest_of(connection: socket.socket) -> bytes:
    """What comes until the node closes the connection, as it must."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionError:
        pass
    return received


def kinds_of_messages() -> list[list[Any]]:
    """One message of each kind that docs/protocol.md has, as far as its first two fields."""
    text = (ROOT / "docs/protocol.md").read_text().partition("## Between nodes")[2].partition("## Commands")[0]
    raft = {int(number) for number in re.findall(r"^\| [A-Z_]+ \| (\d+) \| .*(?:term|seq|index)", text, re.MULTILINE)}
    others = set(re.findall(r"`\[\"([a-z]+)\"", text)) - {"raftkv", "challenge", "proof", "welcome", "refuse"}
    assert raft >= set(range(1, 13))
    assert others >= {"op", "re", "epoch", "map", "leads", "room", "left"}
    fields: list[Any] = [2**40, 1, 1, 1, 1, 1, []]
    return [[0, number, *fields] for number in sorted(raft)] + [[name, *fields] for name in sorted(others)] + [[7]]


def test_a_stranger_who_knows_all_but_the_secret_says_nothing(cluster: LocalCluster) -> None:
    identity = identity_of(cluster.cluster_id, 3, cluster.data_dir(3))
    encoder = Encoder()
    for message in kinds_of_messages():
        frame = bytes(encoder.frame_of([message]))
        for without_waiting in (True, False):
            impostor = Impostor(identity, 1, GUESSED)
            with dialled(cluster.peer_address(1)) as connection:
                connection.sendall(impostor.begin() + (frame if without_waiting else b""))
                if not without_waiting:
                    connection.sendall(impostor.shake(connection.recv(65536)) + frame)
                assert b"welcome" not in rest_of(connection)
    assert "it does not know the cluster's secret" in cluster.log(1, 10_000) or "did not wait" in cluster.log(1, 10_000)
    unharmed(cluster)


def test_a_stranger_is_told_why(cluster: LocalCluster) -> None:
    impostor = Impostor(identity_of(cluster.cluster_id, 3, cluster.data_dir(3)), 1, GUESSED)
    with dialled(cluster.peer_address(1)) as connection:
        connection.sendall(impostor.begin())
        connection.sendall(impostor.shake(connection.recv(65536)))
        (answer,) = Decoder().feed(rest_of(connection))
    assert answer == ["refuse", Reason.NOT_PROVEN, "it does not know the cluster's secret", b""]


def test_a_node_of_an_earlier_protocol_or_without_a_secret_is_refused(cluster: LocalCluster) -> None:
    """No downgrade: to a hello without a nonce, or to the version that had none."""
    for changes in ({8: b""}, {1: 4}):
        impostor = Impostor(identity_of(cluster.cluster_id, 3, cluster.data_dir(3)), 1, secret_of(cluster.folder))
        for field, value in changes.items():
            impostor.hello[field] = value
        with dialled(cluster.peer_address(1)) as connection:
            connection.sendall(impostor.begin())
            with pytest.raises(HelloRefused) as refused:
                impostor.shake(connection.recv(65536))
            assert refused.value.reason in (Reason.NOT_PROVEN, Reason.VERSION)


class Recorder(threading.Thread):
    """Between node 1 and node 2: keeps what node 1 says on each connection."""

    def __init__(self, listen: str, to: str) -> None:
        super().__init__(daemon=True)
        host, port = listen.split(":")
        self.listener = socket.create_server((host, int(port)))
        self.to = to
        self.said: list[bytearray] = []

    def run(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = dialled(self.to)
            except OSError:
                near.close()
                continue
            self.said.append(kept := bytearray())
            threading.Thread(target=self.copy, args=(near, far, kept), daemon=True).start()
            threading.Thread(target=self.copy, args=(far, near, bytearray()), daemon=True).start()

    @staticmethod
    def copy(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        try:
            while data := source.recv(65536):
                kept += data
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def test_what_a_node_said_is_worth_nothing_again() -> None:
    """All bytes of a connection, hello and proof first, are sent again; and one answers in the place of a dead node."""
    (port,) = free_ports(1)
    between = f"127.0.0.1:{port}"
    cluster = LocalCluster(nodes=3, groups=1, dial={(1, 2): between})
    recorder = Recorder(between, cluster.peer_address(2))
    recorder.start()
    with cluster:
        with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
            client.put("before", b"x")
            until(lambda: any(len(said) > 2000 for said in recorder.said))
            replayed = bytes(max(recorder.said, key=len))
            with dialled(cluster.peer_address(2)) as connection:
                connection.sendall(replayed)
                assert b"welcome" not in rest_of(connection)
            hello = len(framed(b"")) + int.from_bytes(replayed[:4], "big")
            with dialled(cluster.peer_address(2)) as connection:
                connection.sendall(replayed[:hello])
                assert b"challenge" in connection.recv(65536)
                connection.sendall(replayed[hello:])
                assert b"welcome" not in rest_of(connection)
            client.put("after", b"x")
        recorder.listener.close()
        _answers_for_a_dead_node(cluster)
        unharmed_without_3(cluster)


def _answers_for_a_dead_node(cluster: LocalCluster) -> None:
    """Three forged "you are removed" ended three processes."""
    cluster.kill(3)
    host, port = cluster.peer_address(3).split(":")
    forged = bytes(Encoder().frame_of(["refuse", int(Reason.REMOVED), "you are removed", b""]))
    challenge = bytes(Encoder().frame_of(["challenge", bytes(16)]))
    with socket.create_server((host, int(port))) as listener:
        listener.settimeout(PATIENCE)
        for first in (forged, challenge) * 4:
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(first)
                if first is challenge:
                    connection.recv(65536)
                    connection.sendall(forged)
                rest_of(connection)


def unharmed_without_3(cluster: LocalCluster) -> None:
    assert None not in [cluster.pid(node) for node in (1, 2)]
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        client.put("after", b"x")


def run(question: Callable[[AdminClient], Awaitable[T]], endpoints: str) -> T:
    async def main() -> T:
        async with AdminClient(endpoints, timeout=PATIENCE) as client:
            return await question(client)

    return asyncio.run(main())


async def asked_to_join(client: AdminClient, token: str) -> str:
    """What became of a folder that nobody knows."""
    first, second = secrets.randbelow(20_000) + 1, secrets.randbelow(20_000) + 20_001
    try:
        joined = await client.join(f"h:{first}", f"h:{second}", secrets.token_hex(16), token=token)
    except ConditionFailed as refused:
        return str(refused)
    return f"node {joined.node}"


def test_joins_by_the_hundred_leave_no_member_behind(cluster: LocalCluster) -> None:
    """323 nodes joined in seconds."""

    async def main(client: AdminClient) -> tuple[list[int], set[str]]:
        told = {await asked_to_join(client, "" if number % 2 else secrets.token_urlsafe(32)) for number in range(100)}
        return [node.id for node in (await client.state()).map.nodes], told

    members, told = run(main, cluster.endpoints)
    assert members == [1, 2, 3]
    assert {text.partition(":")[0] for text in told} == {
        "a join token is missing",
        "the cluster does not know this join token, or it has expired",
    }
    assert any("refused to let the node at 'h:" in cluster.log(node, 10_000) for node in cluster.nodes)
    unharmed(cluster)


def test_a_join_token_is_used_once(cluster: LocalCluster) -> None:
    async def main(client: AdminClient) -> tuple[list[str], list[int]]:
        token = await client.add_join_token()
        outcomes = [await asked_to_join(client, token) for _ in range(3)]
        await client.change(admin_pb2.ChangeRequest(remove_node=4))
        return outcomes, [node.id for node in (await client.state()).map.nodes]

    outcomes, members = run(main, cluster.endpoints)
    assert outcomes[0] == "node 4"
    assert all("this join token was used already" in outcome for outcome in outcomes[1:])
    assert members == [1, 2, 3]


def test_who_asks_for_the_map_hears_no_incarnations(cluster: LocalCluster) -> None:
    for question in (AdminClient.known, AdminClient.state):
        nodes = run(question, cluster.endpoints).map.nodes
        assert [(node.id, node.incarnation) for node in nodes] == [(1, ""), (2, ""), (3, "")]


def test_a_node_that_others_may_reach_does_not_start_unless_that_is_meant(tmp_path: Path) -> None:
    one, two = free_ports(2)
    config = tmp_path / "node.toml"
    config.write_text(
        '[cluster]\nid = "6f1d6d0e-5f0b-4c39-9d0a-2c1a9c6f4b7e"\nreplicas = 1\n'
        f'[node]\nid = 1\ndata_dir = "data"\nlisten = "0.0.0.0:{one}"\n'
        f'[[nodes]]\nid = 1\naddress = "127.0.0.1:{one}"\npeer_address = "127.0.0.1:{two}"\n'
    )
    done = subprocess.run(
        [sys.executable, "-m", "raftkv", "serve", "--config", str(config)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: "known to all nodes"},
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"node.listen: 0.0.0.0:{one} may be reached from other machines" in done.stderr
    assert "security.insecure = true or --insecure" in done.stderr
    assert not (tmp_path / "data").exists()
