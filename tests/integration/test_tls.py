"""Guarantee: with TLS nobody is heard without the right certificate, and certificates change under load unnoticed.

The cluster has users too, as one of ``raftkv up --secure``.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import grpc
import pytest

import raftkv
from faults.abuse.peer import identity_of
from raftkv.local.certificates import Authority
from raftkv.peer.frames import Decoder, Encoder
from raftkv.peer.hello import Reason, hello_frame
from raftkv.testing import LocalCluster
from raftkv.tls import TlsFiles
from tests.integration.test_intruders import dialled, kinds_of_messages, told
from tests.waiting import PATIENCE, until


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, groups=1, secure=True, users=True, metrics=True) as running:
        yield running


@pytest.fixture(scope="module")
def authority(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The cluster's CA, in a folder of its own: what it issues there replaces nothing."""
    folder = tmp_path_factory.mktemp("issued")
    for name in ("ca.pem", "ca.key"):
        (folder / name).write_bytes((cluster.folder / "tls" / name).read_bytes())
    return Authority.open(folder)


def hello_of_node_3(cluster: LocalCluster) -> list[Any]:
    return hello_frame(identity_of(cluster.cluster_id, 3, cluster.data_dir(3)), 1)


def client_of(files: TlsFiles | None) -> ssl.SSLContext:
    """One that looks at nothing, to see what the node does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if files is not None:
        context.load_cert_chain(files.cert, files.key)
    return context


def answer(
    cluster: LocalCluster,
    wrap: Callable[[socket.socket], socket.socket],
    *said: list[Any],
    source: str = "127.0.0.1",
) -> bytes:
    """What node 1 says to these frames, by default to the hello of node 3, until it closes the connection.

    ``source``: from where they come, as its log has one line a minute of each kind for each host.
    """
    frames = said or (hello_of_node_3(cluster),)
    received = b""
    with dialled(cluster.peer_address(1), source) as plain:
        try:
            with wrap(plain) as connection:
                connection.sendall(b"".join(bytes(Encoder().frame_of(frame)) for frame in frames))
                while chunk := connection.recv(65536):
                    received += chunk
        except (ssl.SSLError, ConnectionError):
            pass
    return received


def test_a_stranger_at_the_port_for_nodes_gets_no_answer(
    cluster: LocalCluster, authority: Authority, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path)
    for source, files in (
        ("127.0.1.6", None),
        ("127.0.1.7", other.node(cluster.cluster_id, 3, [])),
        ("127.0.1.8", authority.node(cluster.cluster_id, 3, [], days=-1)),
    ):
        assert answer(cluster, client_of(files).wrap_socket, source=source) == b""
        until(lambda: told(cluster.log(1, 10_000), source, "refused a TLS connection"))  # noqa: B023
    assert b"welcome" not in answer(cluster, lambda plain: plain, source="127.0.1.9"), "no downgrade"
    until(lambda: told(cluster.log(1, 10_000), "127.0.1.9", "refused a TLS connection"))
    earlier = client_of(authority.node(cluster.cluster_id, 3, []))
    assert b"welcome" in answer(cluster, earlier.wrap_socket), "the real node 3 dials again"
    earlier.maximum_version = ssl.TLSVersion.TLSv1_2
    assert answer(cluster, earlier.wrap_socket, source="127.0.1.10") == b"", "nor to an earlier TLS"
    until(lambda: told(cluster.log(1, 10_000), "127.0.1.10", "refused a TLS connection"))


def test_a_node_is_the_one_that_its_certificate_names(cluster: LocalCluster, authority: Authority) -> None:
    two, me = authority.node(cluster.cluster_id, 2, []), authority.client("me")
    for files in (two, authority.node("6f1d6d0e-5f0b-4c39-9d0a-2c1a9c6f4b7e", 3, []), me):
        (refusal,) = Decoder().feed(answer(cluster, client_of(files).wrap_socket))
        assert refusal[:2] == ["refuse", Reason.NOT_PROVEN]
        assert refusal[2].startswith(f"its certificate does not name node 3 of cluster {cluster.cluster_id}, but ")
    assert "refused one that says it is node 3 at 127.0.0.1" in cluster.log(1, 1000)
    assert all(cluster.pid(node) for node in cluster.nodes)


def test_a_clients_certificate_says_nothing_as_a_node(cluster: LocalCluster, authority: Authority) -> None:
    """Who has one, and knows cluster id, incarnations and protocol: each kind of message, with a hello and without."""
    connect = client_of(authority.client("me")).wrap_socket
    for message in kinds_of_messages():
        for frames in ([[message]], [hello_of_node_3(cluster), [message]]):
            assert b"welcome" not in answer(cluster, connect, *frames, source="127.0.1.5")
    until(lambda: told(cluster.log(1, 10_000), "127.0.1.5", "refused a dialler"))
    with raftkv.Client(cluster.endpoints, tls=cluster.tls, token=cluster.token, timeout=PATIENCE) as client:
        client.put("unharmed", b"x")
    assert all(cluster.pid(node) for node in cluster.nodes)


def refused(cluster: LocalCluster, tls: raftkv.TLS | None) -> bool:
    with raftkv.Client(cluster.endpoints, tls=tls, token=cluster.token, timeout=1.0) as client:
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
        with (
            raftkv.Client(f"127.0.0.1:{port}", tls=tls, token=cluster.token, timeout=1.0) as client,
            pytest.raises(raftkv.RaftKVError),
        ):
            client.get("k")
    finally:
        server.stop(None).wait()
    assert bool(asked) == node


def test_metrics_want_a_certificate_and_probes_do_not(cluster: LocalCluster) -> None:
    assert cluster.tls is not None

    def status(path: str, context: ssl.SSLContext | None, token: str | None = None) -> int:
        host, port = cluster.metrics_address(1).split(":")
        if context is None:
            connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
        else:
            connection = http.client.HTTPSConnection(host, int(port), timeout=PATIENCE, context=context)
        try:
            connection.request("GET", path, headers={} if token is None else {"Authorization": f"Bearer {token}"})
            return connection.getresponse().status
        except (http.client.HTTPException, OSError):
            return 0
        finally:
            connection.close()

    anybody = ssl.create_default_context(cafile=str(cluster.tls.ca))
    known = ssl.create_default_context(cafile=str(cluster.tls.ca))
    known.load_cert_chain(str(cluster.tls.cert), str(cluster.tls.key))
    assert [status(path, anybody) for path in ("/livez", "/readyz", "/metrics")] == [200, 200, 403]
    assert [status("/metrics", anybody, cluster.token), status("/metrics", known)] == [403, 401], "both are wanted"
    assert status("/metrics", known, cluster.token) == 200
    assert status("/livez", None) == 0


def served(cluster: LocalCluster, files: TlsFiles) -> set[bytes]:
    """The certificates that the nodes show on new connections: for clients, for nodes, for metrics."""
    found = set()
    context = client_of(files)
    context.set_alpn_protocols(["h2"])
    for node in cluster.nodes:
        for address in (cluster.address(node), cluster.peer_address(node), cluster.metrics_address(node)):
            host, port = address.split(":")
            with (
                socket.create_connection((host, int(port)), timeout=PATIENCE) as plain,
                context.wrap_socket(plain) as connection,
            ):
                found.add(connection.getpeercert(binary_form=True) or b"")
    return found


def replaced(path: Path, data: bytes) -> None:
    """As a whole: clients read it meanwhile."""
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    new.replace(path)


class Writers:
    """Clients at work: one stays connected, others connect anew again and again, as ``tls`` says at the time."""

    def __init__(self, cluster: LocalCluster, tls: raftkv.TLS) -> None:
        self.cluster = cluster
        self.tls = tls
        self.over = threading.Event()
        self.failures: list[Exception] = []
        self.done = [0, 0]
        self.threads = [threading.Thread(target=one) for one in (self.stays, self.comes_and_goes)]

    def __enter__(self) -> Self:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()

    def client(self) -> raftkv.Client[Any, Any]:
        cluster = self.cluster
        return raftkv.Client(cluster.endpoints, tls=self.tls, token=cluster.token, timeout=PATIENCE)

    def write(self, client: raftkv.Client[Any, Any], who: int) -> None:
        try:
            client.put(f"w{who}/{self.done[who] % 100}", b"x")
            client.get(f"w{who}/0")
        except raftkv.RaftKVError as error:
            self.failures.append(error)
        self.done[who] += 1

    def stays(self) -> None:
        with self.client() as client:
            while not self.over.is_set():
                self.write(client, 0)

    def comes_and_goes(self) -> None:
        while not self.over.is_set():
            with self.client() as client:
                for _ in range(3):
                    self.write(client, 1)

    def go_on(self) -> None:
        """Each does some more."""
        before = list(self.done)
        until(lambda: all(now >= then + 10 for now, then in zip(self.done, before, strict=True)))


def test_certificates_and_their_ca_change_under_load(cluster: LocalCluster, tmp_path: Path) -> None:
    """From one CA to another, as docs/security.md says, without a failed call."""
    assert cluster.tls is not None
    folder = cluster.folder / "tls"

    def taken_over(times: int) -> None:
        def count(node: int) -> int:
            return cluster.log(node, 10_000).count("certificates reloaded")

        until(lambda: all(count(node) >= times for node in cluster.nodes))

    authority = Authority.create(tmp_path)
    old, new, me = (folder / "ca.pem").read_bytes(), tmp_path / "ca.pem", authority.client("me")
    with Writers(cluster, cluster.tls) as writers:
        writers.go_on()
        replaced(folder / "ca.pem", old + new.read_bytes())
        taken_over(1)
        writers.go_on()
        issued = set()
        for node in cluster.nodes:
            files = authority.node(cluster.cluster_id, node, ["127.0.0.1"])
            replaced(folder / f"node-{node}.key", Path(files.key).read_bytes())
            replaced(folder / f"node-{node}.pem", Path(files.cert).read_bytes())
            issued.add(ssl.PEM_cert_to_DER_cert(Path(files.cert).read_text()))
        taken_over(2)
        assert served(cluster, me) == issued
        writers.go_on()
        writers.tls = raftkv.TLS(me.ca, me.cert, me.key)
        writers.go_on()
        replaced(folder / "ca.pem", new.read_bytes())
        taken_over(3)
        writers.go_on()
    assert writers.failures == []
    assert refused(cluster, cluster.tls), "the old one is of no use any more"
    # A node that comes back has to shake hands with all others.
    for name in ("pem", "key"):
        replaced(folder / f"client.{name}", (tmp_path / f"me.{name}").read_bytes())
    cluster.restart(2)
    with raftkv.Client(cluster.endpoints, tls=cluster.tls, token=cluster.token, timeout=PATIENCE) as client:
        client.put("after", b"x")
