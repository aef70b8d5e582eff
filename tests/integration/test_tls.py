"""Guarantee: with TLS nobody is heard without the right certificate, and certificates change under load unnoticed."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

import raftkv
from faults.abuse.peer import identity_of
from raftkv.local.certificates import Authority
from raftkv.peer.frames import Decoder, Encoder
from raftkv.peer.hello import Reason, hello_frame
from raftkv.testing import LocalCluster
from raftkv.tls import TlsFiles
from tests.waiting import PATIENCE, until


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, groups=1, secure=True, metrics=True) as running:
        yield running


@pytest.fixture(scope="module")
def authority(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The cluster's CA, in a folder of its own: what it issues there replaces nothing."""
    folder = tmp_path_factory.mktemp("issued")
    for name in ("ca.pem", "ca.key"):
        (folder / name).write_bytes((cluster.folder / "tls" / name).read_bytes())
    return Authority.open(folder)


def client_of(files: TlsFiles | None) -> ssl.SSLContext:
    """One that looks at nothing, to see what the node does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if files is not None:
        context.load_cert_chain(files.cert, files.key)
    return context


def answer(cluster: LocalCluster, wrap: Callable[[socket.socket], socket.socket], node: int = 3) -> bytes:
    """What node 1 says to the hello of ``node``, until it closes the connection."""
    identity = identity_of(cluster.cluster_id, node, cluster.data_dir(node))
    host, port = cluster.peer_address(1).split(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as plain:
        try:
            with wrap(plain) as connection:
                connection.sendall(bytes(Encoder().frame_of(hello_frame(identity, 1))))
                while chunk := connection.recv(65536):
                    received += chunk
        except (ssl.SSLError, ConnectionError):
            pass
    return received


def test_a_stranger_at_the_port_for_nodes_gets_no_answer(
    cluster: LocalCluster, authority: Authority, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path)
    for files in (
        None,
        other.node(cluster.cluster_id, 3, []),
        authority.node(cluster.cluster_id, 3, [], days=-1),
    ):
        assert answer(cluster, client_of(files).wrap_socket) == b""
    assert b"welcome" not in answer(cluster, lambda plain: plain), "no downgrade"
    assert "refused a TLS connection from 127.0.0.1:" in cluster.log(1, 1000)


def test_a_node_is_the_one_that_its_certificate_names(cluster: LocalCluster, authority: Authority) -> None:
    two, me = authority.node(cluster.cluster_id, 2, []), authority.client("me")
    for files in (two, authority.node("6f1d6d0e-5f0b-4c39-9d0a-2c1a9c6f4b7e", 3, []), me):
        (refusal,) = Decoder().feed(answer(cluster, client_of(files).wrap_socket))
        assert refusal[:2] == ["refuse", Reason.NOT_PROVEN]
        assert refusal[2].startswith(f"its certificate does not name node 3 of cluster {cluster.cluster_id}, but ")
    assert "refused one that says it is node 3 at 127.0.0.1" in cluster.log(1, 1000)
    assert all(cluster.pid(node) for node in cluster.nodes)


def refused(cluster: LocalCluster, tls: raftkv.TLS | None) -> bool:
    with raftkv.Client(cluster.endpoints, tls=tls, timeout=1.0) as client:
        try:
            client.put("refused", b"x")
        except raftkv.Unavailable:
            return True
    return False


def test_clients_are_asked_for_certificates(cluster: LocalCluster, authority: Authority, tmp_path: Path) -> None:
    assert cluster.tls is not None
    ca, other = cluster.tls.ca, Authority.create(tmp_path)
    assert refused(cluster, None), "plaintext"
    assert refused(cluster, raftkv.TLS(ca)), "no certificate"
    stranger, expired = other.client("me"), authority.client("late", days=-1)
    assert refused(cluster, raftkv.TLS(ca, stranger.cert, stranger.key))
    assert refused(cluster, raftkv.TLS(ca, expired.cert, expired.key))
    assert refused(cluster, raftkv.TLS(stranger.ca, cluster.tls.cert, cluster.tls.key)), "the client checks too"
    assert refused(cluster, raftkv.TLS(ca, cluster.tls.cert, cluster.tls.key, server_name="kv.example"))
    with raftkv.Client.from_url(f"{cluster.url}&server_name=localhost", timeout=PATIENCE) as client:
        client.put("taken", b"x")


@pytest.mark.parametrize("node", [False, True])
def test_a_client_says_nothing_to_one_who_is_no_node(node: bool, cluster: LocalCluster, authority: Authority) -> None:
    """The certificate of a client is none of a server, whatever the client is called."""
    files = authority.node(cluster.cluster_id, 9, ["localhost"]) if node else authority.client("localhost")
    asked: list[str] = []

    class Listening(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stubs only
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> None:
            asked.append(handler_call_details.method)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Listening()])
    key, cert = (Path(path).read_bytes() for path in (files.key, files.cert))
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, cert)]))
    server.start()
    assert cluster.tls is not None
    tls = replace(cluster.tls, server_name="localhost")
    try:
        with raftkv.Client(f"127.0.0.1:{port}", tls=tls, timeout=1.0) as client, pytest.raises(raftkv.RaftKVError):
            client.get("k")
    finally:
        server.stop(None).wait()
    assert bool(asked) == node


def test_metrics_want_a_certificate_and_probes_do_not(cluster: LocalCluster) -> None:
    assert cluster.tls is not None

    def status(path: str, context: ssl.SSLContext | None) -> int:
        host, port = cluster.metrics_address(1).split(":")
        if context is None:
            connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
        else:
            connection = http.client.HTTPSConnection(host, int(port), timeout=PATIENCE, context=context)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (http.client.HTTPException, OSError):
            return 0
        finally:
            connection.close()

    anybody = ssl.create_default_context(cafile=str(cluster.tls.ca))
    known = ssl.create_default_context(cafile=str(cluster.tls.ca))
    known.load_cert_chain(str(cluster.tls.cert), str(cluster.tls.key))
    assert [status(path, anybody) for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 403]
    assert status("/metrics", known) == 200
    assert status("/livez", None) == 0


def test_certificates_and_their_ca_change_under_load(cluster: LocalCluster, tmp_path: Path) -> None:
    """From one CA to another, as docs/security.md says, without a failed call."""
    assert cluster.tls is not None
    folder = cluster.folder / "tls"
    over, failures, written = threading.Event(), list[Exception](), [0]

    def write() -> None:
        with raftkv.Client(cluster.endpoints, tls=cluster.tls, timeout=PATIENCE) as client:
            while not over.is_set():
                try:
                    client.put(f"k{written[0] % 100}", b"x")
                except raftkv.RaftKVError as error:
                    failures.append(error)
                written[0] += 1

    def taken_over(times: int) -> None:
        def count(node: int) -> int:
            return cluster.log(node, 10_000).count("certificates reloaded")

        until(lambda: all(count(node) >= times for node in cluster.nodes))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        old, new = (folder / "ca.pem").read_text(), Authority.create(tmp_path)
        (folder / "ca.pem").write_text(old + (tmp_path / "ca.pem").read_text())
        taken_over(1)
        for node in cluster.nodes:
            files = new.node(cluster.cluster_id, node, ["127.0.0.1"])
            (folder / f"node-{node}.key").write_bytes(Path(files.key).read_bytes())
            (folder / f"node-{node}.pem").write_bytes(Path(files.cert).read_bytes())
        taken_over(2)
        me = new.client("me")
        both = raftkv.TLS(folder / "ca.pem", me.cert, me.key)
        with raftkv.Client(cluster.endpoints, tls=both, timeout=PATIENCE) as client:
            client.put("with the new one", b"x")
        (folder / "ca.pem").write_text((tmp_path / "ca.pem").read_text())
        taken_over(3)
        before = written[0]
        until(lambda: written[0] > before + 20)
    finally:
        over.set()
        writer.join()
    assert failures == []
    assert refused(cluster, cluster.tls), "the old one is of no use any more"
    # A node that comes back has to shake hands with all others.
    for name in ("pem", "key"):
        (folder / f"client.{name}").write_bytes((tmp_path / f"me.{name}").read_bytes())
    cluster.restart(2)
    with raftkv.Client(cluster.endpoints, tls=cluster.tls, timeout=PATIENCE) as client:
        client.put("after", b"x")
