"""Clumsy use of the commands and bad bytes on a running cluster get a clear error and harm nothing."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import msgpack
import pytest

import raftkv
from faults.abuse.peer import Impostor, identity_of, secret_of
from raftkv.limits import MAX_BATCH_BYTES, MAX_FRAME_BYTES, MAX_KEY_BYTES, MAX_TTL, MAX_VALUE_BYTES
from raftkv.peer.frames import LENGTH, ProtocolViolation, framed
from raftkv.peer.hello import PROTOCOL_VERSION, HelloRefused
from raftkv.testing import LocalCluster
from raftkv.v1 import kv_pb2, kv_pb2_grpc
from tests.waiting import PATIENCE


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, groups=2) as running:
        yield running


def _shell(script: str, cluster: LocalCluster | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run ``script`` with ``raftkv`` as a word for the command line."""
    return subprocess.run(
        ["/bin/sh", "-c", f'raftkv() {{ "{sys.executable}" -m raftkv.cli.main "$@"; }}\n{script}'],
        capture_output=True,
        timeout=PATIENCE,
        env={**os.environ, "NO_COLOR": "1", "RAFTKV_ENDPOINTS": cluster.endpoints if cluster else "127.0.0.1:1"},
        check=False,
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("command", ["dump", "get here", "get here -o json", "put other x"])
def test_output_that_cannot_be_written_is_one_line_and_an_exit_code(cluster: LocalCluster, command: str) -> None:
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        client.put("here", b"x" * 100_000)
    done = _shell(f"raftkv {command} > /dev/full", cluster)
    assert done.returncode == 1
    assert b"No space left" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(("command", "code"), [("get absent", 4), ("dump", 0), ("get", 2)])
def test_messages_that_cannot_be_written_change_no_exit_code(cluster: LocalCluster, command: str, code: int) -> None:
    assert _shell(f"raftkv {command} 2> /dev/full", cluster).returncode == code


@pytest.mark.parametrize(("command", "told"), [("put kept -", b"cannot continue"), ("load -", b"cannot read it")])
def test_a_closed_stdin_is_no_empty_value_or_file(cluster: LocalCluster, command: str, told: bytes) -> None:
    with raftkv.Client(cluster.endpoints, timeout=10.0) as client:
        client.put("kept", b"x")
        done = _shell(f"raftkv {command} <&-", cluster)
        assert (done.returncode, told in done.stderr) == (1, True)
        record = client.get("kept")
    assert record is not None
    assert record.value == b"x"


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs a device that never ends")
def test_no_more_of_stdin_is_read_than_a_value_may_have(cluster: LocalCluster) -> None:
    done = _shell("raftkv put endless - < /dev/zero", cluster)
    assert done.returncode == 1
    assert b"1048576" in done.stderr


def test_a_reader_that_has_gone_is_no_complaint(cluster: LocalCluster) -> None:
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        for number in range(20):
            client.put(f"long{number}", b"x" * 50_000)
    done = _shell("raftkv dump | head -c 10", cluster)
    assert done.returncode == 0
    assert len(done.stdout) == 10
    assert done.stderr == b""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_files_are_never_taken_for_others(cluster: LocalCluster, closed: str) -> None:
    """A socket or a data file that got number 2 would receive what libraries write there."""
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        client.put("here", b"x")
    done = _shell(f"raftkv get here {closed}", cluster)
    assert done.returncode == 0
    assert done.stdout == (b"" if ">&-" in closed.split() else b"x")


def test_a_load_is_checked_before_its_first_write(cluster: LocalCluster, tmp_path: Path) -> None:
    rows = [{"key": "first", "value": "x"}, {"key": "second", "value": "x", "expires_at": 4e9 + MAX_TTL}]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = _shell(f"raftkv load {source}", cluster)
    assert done.returncode == 1
    assert b"line 2: expires_at is more than" in done.stderr
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        assert client.get("first") is None


def test_sizes_are_refused_by_the_server_itself(cluster: LocalCluster) -> None:
    """A client of another language may not check what ours checks; what is at the limit passes."""
    with grpc.insecure_channel(cluster.address(1)) as channel:
        stub = kv_pb2_grpc.KVStub(channel)
        stub.Put(kv_pb2.PutRequest(key=b"k" * MAX_KEY_BYTES, value=b"v" * MAX_VALUE_BYTES), timeout=PATIENCE)
        for request in (
            kv_pb2.PutRequest(key=b"", value=b""),
            kv_pb2.PutRequest(key=b"k" * (MAX_KEY_BYTES + 1), value=b""),
            kv_pb2.PutRequest(key=b"k", value=b"v" * (MAX_VALUE_BYTES + 1)),
            kv_pb2.PutRequest(key=b"k", value=b"v" * (2 * MAX_BATCH_BYTES)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Put(request, timeout=PATIENCE)
            assert caught.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert not stub.Get(kv_pb2.GetRequest(key=b"k"), timeout=PATIENCE).HasField("record")


def _say(message: object, impostor: Impostor) -> bytes:
    return impostor.say(message)


def _bad_frames() -> list[Callable[[Impostor], bytes]]:
    """After the hello of a real node: everything that no node sends."""
    rng = random.Random(0)
    messages: list[object] = ["x", [], ["zz"], ["op", 1, 2, [[1]]], ["op", -1, -2, [[0] * 11]], [1, 1], [99, 1, 5]]
    messages += [["re", 1], ["re", [[1, 0, [0] * 7]]], ["map", b"zz"], ["map", b"\x91" * 10_000], [1.5], [True, 0, 1]]
    messages += [[1, 1, *[2**64 - 1] * 6, []], ["epoch", -1], [1, 99, 2**62]]
    nested = b"\x91" * 50_000
    return [
        lambda _: rng.randbytes(200),
        lambda _: LENGTH.pack(MAX_FRAME_BYTES + 1),
        lambda _: LENGTH.pack(2**32 - 1),
        lambda _: LENGTH.pack(3) + bytes(16) + b"\x91\x91\x01",
        lambda _: framed(b"\x91\x01"),
        lambda impostor: impostor.frame(nested),
        *(partial(_say, message) for message in messages),
    ]


def test_bad_bytes_on_the_port_for_peers_end_that_connection_only(cluster: LocalCluster) -> None:
    identity, secret = identity_of(cluster.cluster_id, 3, cluster.data_dir(3)), secret_of(cluster.folder)
    host, port = cluster.peer_address(1).split(":")
    # The real node would dial again and take the place of the connection that speaks in its name.
    cluster.kill(3)

    def ends(connection: socket.socket, sent: bytes) -> bytes:
        """What comes until the node closes the connection, as it must."""
        received = b""
        try:
            connection.sendall(sent)
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionError:
            pass
        return received

    @contextmanager
    def shaken(impostor: Impostor) -> Iterator[socket.socket]:
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            connection.sendall(impostor.begin())
            while not impostor.welcomed:
                connection.sendall(impostor.shake(connection.recv(65536)))
            yield connection

    for bad in _bad_frames():
        impostor = Impostor(identity, 1, secret)
        with shaken(impostor) as connection:
            ends(connection, bad(impostor))
    others = ((1, PROTOCOL_VERSION - 1), (1, PROTOCOL_VERSION + 1))
    for field, value in (*others, (2, 1), (3, "other"), (4, 9), (4, 1), (5, 2), (6, "0" * 32), (6, ""), (0, "http")):
        impostor = Impostor(identity, 1, secret)
        impostor.hello[field] = value
        with pytest.raises((HelloRefused, ProtocolViolation)), shaken(impostor):
            pass
    for stranger in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00" * 40,
        b"\0" * 100,
        random.Random(1).randbytes(9000),
    ):
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
            assert b"welcome" not in ends(connection, stranger)
    cluster.restart(3)
    cluster.wait_ready()
    with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as client:
        client.put("after", b"x")
    log = cluster.log(1, 10_000)
    assert "Traceback" not in log
    # One line a minute, however many connections were dropped; the tests before may have taken some minutes.
    assert 1 <= log.count("dropped the connection from node 3") < len(list(_bad_frames()))


def test_a_saved_map_that_cannot_be_read_is_learnt_anew() -> None:
    """The copy in the data folder is a hint: a node starts without it."""
    with LocalCluster(nodes=3, groups=1) as running:
        running.kill(2)
        junk = msgpack.packb({"epoch": "another version"})
        (running.data_dir(2) / "map").write_bytes(zlib.crc32(junk).to_bytes(4, "little") + junk)
        running.restart(2)
        assert "the saved shard map is not used" in running.log(2, 100)
