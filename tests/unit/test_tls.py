"""Guarantee: a certificate is good for the node that it names, and files that do not fit together change nothing."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import stat
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop
from cryptography import x509

from raftkv.errors import ConfigError
from raftkv.files import replacing, write_private
from raftkv.local.certificates import Authority, CertificateError
from raftkv.node.config import NodeConfig, parse_config
from raftkv.node.credentials import Certificates, certificates
from raftkv.tls import Arrivals, TlsFiles, certificate_of, names_of, node_name
from tests.waiting import PATIENCE

CLUSTER = "6f1d6d0e-5f0b-4c39-9d0a-2c1a9c6f4b7e"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("certs"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("other"))


def mixed(files: TlsFiles, **parts: str) -> TlsFiles:
    return TlsFiles(**{**{name: getattr(files, name) for name in ("ca", "cert", "key")}, **parts})


def test_a_certificate_names_its_node_and_its_hosts(authority: Authority) -> None:
    found = certificate_of(authority.node(CLUSTER, 3, ["kv-3.example", "10.0.0.3", "::1"]))
    assert names_of(found) == {node_name(CLUSTER, 3), "kv-3.example"}
    assert ("IP Address", "10.0.0.3") in found["subjectAltName"]
    assert Certificates.doubt(found, CLUSTER, 3) == ""


@pytest.mark.parametrize(("cluster", "node"), [(CLUSTER, 2), (CLUSTER, 33), (CLUSTER.replace("6", "7"), 3)])
def test_it_is_no_other_nodes(authority: Authority, cluster: str, node: int) -> None:
    found = certificate_of(authority.node(CLUSTER, 3, []))
    doubt = Certificates.doubt(found, cluster, node)
    assert doubt == f"its certificate does not name node {node} of cluster {cluster}, but {node_name(CLUSTER, 3)}"
    assert Certificates.doubt(None, CLUSTER, 3).endswith("but nobody")


def test_no_pattern_and_no_common_name_is_a_name() -> None:
    names = (("DNS", f"*.{CLUSTER}"), ("DNS", "*"), ("URI", node_name(CLUSTER, 3)), ("DNS", node_name(CLUSTER, 4)))
    assert "does not name node 3" in Certificates.doubt({"subjectAltName": names}, CLUSTER, 3)
    assert Certificates.doubt({"subject": ((("commonName", node_name(CLUSTER, 3)),),)}, CLUSTER, 3) != ""


def test_what_no_peer_would_trust_is_told_before_it_is_used(
    authority: Authority, other: Authority, tmp_path: Path
) -> None:
    good, foreign = authority.node(CLUSTER, 1, []), other.node(CLUSTER, 1, [])
    junk = tmp_path / "junk"
    junk.write_text("no PEM")
    for files, told in (
        (mixed(good, ca=foreign.ca), "is not trusted with the CAs in .*: self-signed certificate|unable to get local"),
        (mixed(good, key=foreign.key), "no certificate and its key: key values mismatch"),
        (mixed(good, cert=str(junk)), "no certificate and its key: "),
        (mixed(good, ca=str(junk)), "junk: no certificates of CAs: "),
        (mixed(good, key=str(tmp_path / "none")), "no certificate and its key: No such file"),
        (authority.node(CLUSTER, 7, [], days=-1), "is not trusted .*: certificate has expired"),
        (authority.client("me"), "is not trusted .*: unsuitable certificate purpose"),
    ):
        with pytest.raises(ConfigError, match=told):
            certificate_of(files)


def config(security: dict[str, Any]) -> NodeConfig:
    nodes = [{"id": 1, "address": "127.0.0.1:7401", "peer_address": "127.0.0.1:7501"}]
    cluster = {"id": CLUSTER, "replicas": 1}
    return parse_config(
        {"cluster": cluster, "node": {"id": 1, "data_dir": "d"}, "security": security, "nodes": nodes}, "t"
    )


def security(files: TlsFiles) -> dict[str, Any]:
    return {"ca_file": files.ca, "cert_file": files.cert, "key_file": files.key}


def test_a_node_does_not_start_with_the_certificate_of_another(authority: Authority) -> None:
    assert certificates(config({})) is None
    assert certificates(config(security(authority.node(CLUSTER, 1, [])))) is not None
    with pytest.raises(ConfigError, match=f"names node-2.{CLUSTER}, not node-1.{CLUSTER}, which is this node"):
        certificates(config(security(authority.node(CLUSTER, 2, []))))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"ca_file": "a"}, "cert_file is missing: TLS needs CAs, a certificate and its key"),
        ({"cert_file": "a", "key_file": "b"}, "ca_file is missing"),
        ({"client_certs": True}, "ca_file is missing"),
        ({"ca_file": "a", "cert_file": "b", "key_file": "c", "insecure": True}, "insecure means nothing with TLS"),
    ],
)
def test_half_of_tls_is_none(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config(given)


def test_changed_files_are_taken_over_once_they_fit_together(
    authority: Authority, other: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    files = authority.node(CLUSTER, 9, [])
    held = Certificates(files, CLUSTER, 9, ask_clients=False)
    before = held.pem
    held.look()
    assert held.pem is before
    old_key = Path(files.key).read_text()
    authority.node(CLUSTER, 9, [])
    new_key = Path(files.key).read_text()
    Path(files.key).write_text(old_key)
    held.look()
    held.look()
    assert held.pem is before
    assert [line.partition(": ")[0] for line in caplog.messages] == [
        "certificates not reloaded, keeping the old ones"
    ], "once"
    Path(files.key).write_text(new_key)
    held.look()
    assert held.pem != before
    assert "certificates reloaded; node-9" in caplog.messages[-1]
    Path(files.cert).write_text(Path(other.node(CLUSTER, 8, []).cert).read_text())
    held.look()
    assert "not reloaded" in caplog.messages[-1]


def meet(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any] | None:
    """What the client learns of the server, None if they do not come together."""
    near, far = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [server.wrap_bio(near, far, server_side=True), client.wrap_bio(far, near)]
    try:
        for _ in range(6):
            for side in sides:
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    pass
        return dict(sides[1].getpeercert() or {})
    except ssl.SSLError:
        return None


def test_a_new_connection_has_the_latest_certificates(other: Authority, tmp_path: Path) -> None:
    files = Authority.create(tmp_path).node(CLUSTER, 5, ["first"])
    held = Certificates(files, CLUSTER, 5, ask_clients=True)
    first = held.dialling
    assert meet(held.accepting, first) is not None
    strange = other.node(CLUSTER, 5, ["second"])
    assert meet(held.accepting, strange.context(server=False)) is None
    for name in ("ca", "key", "cert"):
        Path(getattr(files, name)).write_bytes(Path(getattr(strange, name)).read_bytes())
    held.look()
    assert meet(held.accepting, first) is None
    assert meet(held.accepting, strange.context(server=False)) is not None
    assert held.dialling is not first


def test_keys_are_for_their_owner_and_no_ca_is_overwritten(tmp_path: Path) -> None:
    made = Authority.create(tmp_path / "certs")
    files = made.client("me")
    for path in (Path(files.key), tmp_path / "certs" / "ca.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    made.client("me")
    assert stat.S_IMODE(Path(files.key).stat().st_mode) == 0o600
    with pytest.raises(CertificateError, match="holds a CA already"):
        Authority.create(tmp_path / "certs")
    with pytest.raises(CertificateError, match="no CA can be read there"):
        Authority.open(tmp_path)
    assert Authority.open(tmp_path / "certs").client("you").cert.endswith("you.pem")
    for name in ("ca", "node-1", "../me", "", "a b"):
        with pytest.raises(CertificateError, match="cannot be named"):
            made.client(name)
    for host in ("é", "10.0.0.1:7401", "*", "a b", ""):
        with pytest.raises(CertificateError, match="not the name or address of a host"):
            made.node(CLUSTER, 1, [host])
    (tmp_path / "certs" / "ca.key").write_bytes(Path(files.key).read_bytes())
    with pytest.raises(CertificateError, match="ca.key is not the key of ca.pem"):
        Authority.open(tmp_path / "certs")


def test_a_private_file_is_private_whatever_was_there_before(tmp_path: Path) -> None:
    path = tmp_path / "peer.secret"
    path.write_text("old")
    path.chmod(0o664)
    write_private(path, "new")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("new", 0o600)
    seen = []
    with replacing(tmp_path / "other", private=True):
        (part,) = tmp_path.glob("other.*.part")
        seen.append(stat.S_IMODE(part.stat().st_mode))
    assert seen == [0o600], "from the first byte on"


def test_what_keys_may_do(authority: Authority) -> None:
    """The strictest check that OpenSSL has, which newer versions of Python make by default."""
    files = authority.node(CLUSTER, 1, ["kv-1"])
    certificate = x509.load_pem_x509_certificate(Path(files.cert).read_bytes())
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (True, False, False)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    client = files.context(server=False)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    server = files.context(server=True)
    server.verify_flags |= ssl.VERIFY_X509_STRICT
    assert meet(server, client) is not None


def test_a_key_that_others_may_read_is_said(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    files = authority.node(CLUSTER, 1, [])
    Certificates(files, CLUSTER, 1, ask_clients=False)
    assert caplog.messages == []
    Path(files.key).chmod(0o644)
    Certificates(files, CLUSTER, 1, ask_clients=False)
    assert caplog.messages == [f"{files.key} is open to other users of this machine: `chmod o= {files.key}`"]


def test_files_that_change_while_they_are_read_are_read_again(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else what is served would not be what was checked."""
    files = authority.node(CLUSTER, 6, [])
    held = Certificates(files, CLUSTER, 6, ask_clients=False)
    before, read = held.pem, TlsFiles.read

    def late(self: TlsFiles) -> tuple[bytes, bytes, bytes]:
        authority.node(CLUSTER, 6, [])
        return read(self)

    monkeypatch.setattr(TlsFiles, "read", late)
    authority.node(CLUSTER, 6, [])
    held.look()
    assert held.pem is before
    assert "changed while they were read" in caplog.messages[-1]
    monkeypatch.setattr(TlsFiles, "read", read)
    held.look()
    assert held.pem == files.read()


def test_an_end_that_is_near_and_files_that_are_of_no_use_are_problems(authority: Authority) -> None:
    files = authority.node(CLUSTER, 6, [], days=100)
    held = Certificates(files, CLUSTER, 6, ask_clients=False)
    end, day = held._ends, 86400.0

    def told(now: float) -> list[str]:
        return [problem.text for problem in held.problems(now) if problem.kind == "certificate"]

    assert told(end - 8 * day) == []
    assert told(end - 6 * day) == [f"the node's certificate expires: {held.until}"]
    assert told(end) == [f"the node's certificate has expired: {held.until}"]
    authority.node(CLUSTER, 6, [], days=-1)
    held.look()
    (text,) = told(end - 8 * day)
    assert text.startswith("the files have changed and cannot be used: ")
    assert "certificate has expired" in text
    assert "cannot" not in told(end)[0]
    authority.node(CLUSTER, 6, [], days=1)
    held.look()
    assert told(held._ends - day / 2) == []
    assert told(held._ends - day / 12) != []


# Connections that have not shaken hands yet


def arriving(scenario: Callable[[ArrivingWorld], Coroutine[Any, Any, None]], authority: Authority, most: int) -> None:
    async def main() -> None:
        files = authority.node(CLUSTER, 5, ["first"])
        loop, made = asyncio.get_running_loop(), list[Greeter]()
        context = files.context(server=True)
        arrivals = Arrivals(lambda: context, lambda: Greeter(made), most=most, patience=PATIENCE)
        server = await loop.create_server(arrivals, "127.0.0.1", 0)
        try:
            await scenario(ArrivingWorld(server.sockets[0].getsockname()[1], files, made, arrivals))
        finally:
            server.close()
            arrivals.close()

    for make in (uvloop.new_event_loop, asyncio.new_event_loop):
        with asyncio.Runner(loop_factory=make) as runner:
            runner.run(main())


class Greeter(asyncio.Protocol):
    """Says hello to whoever has shaken hands."""

    def __init__(self, made: list[Greeter]) -> None:
        self.made = made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made.append(self)
        assert transport.get_extra_info("peercert") is not None
        # The transports of uvloop only look like asyncio's.
        transport = cast(asyncio.Transport, transport)
        transport.write(b"hello")
        transport.close()


@dataclass
class ArrivingWorld:
    port: int
    files: TlsFiles
    made: list[Greeter]
    arrivals: Arrivals

    async def connect(
        self, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=tls, local_addr=(host, 0))


def test_strangers_who_do_not_shake_hands_are_bounded_and_do_not_keep_others_out(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: ArrivingWorld) -> None:
        patient, other = await world.connect(host="127.0.0.2")
        silent = [await world.connect() for _ in range(9)]
        for reader, _ in silent[:3]:
            assert await reader.read() == b""
        assert not any(reader.at_eof() for reader, _ in silent[3:])
        assert not patient.at_eof(), "it is the only one of its host"
        reader, writer = await world.connect(world.files.context(server=False))
        assert await reader.read() == b"hello"
        assert len(world.made) == 1
        world.arrivals.close()
        for reader, _ in silent:
            assert await reader.read() == b""
        for _, one in [*silent, (reader, writer), (patient, other)]:
            one.close()

    arriving(scenario, authority, most=7)
    assert "refused a TLS connection from 127.0.0.1: too many without a handshake" in caplog.messages


def test_why_nobody_is_taken_is_said_with_the_address(authority: Authority, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: ArrivingWorld) -> None:
        for sent in (b"GET / HTTP/1.1\r\n\r\n", b"", bytes(100)):
            reader, writer = await world.connect()
            writer.write(sent)
            if not sent:
                writer.close()
            with contextlib.suppress(ConnectionError):
                assert b"hello" not in await reader.read()
            writer.close()
        nameless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        nameless.check_hostname, nameless.verify_mode = False, ssl.CERT_NONE
        reader, writer = await world.connect(nameless)
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
        writer.close()
        old = world.files.context(server=False)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
        with pytest.raises(OSError):
            await world.connect(old)
        assert world.made == []

    arriving(scenario, authority, most=7)
    lines = [line for line in caplog.messages if line.startswith("refused a TLS connection from 127.0.0.1:")]
    told = [line.rpartition(": ")[2] for line in lines]
    assert told.count("http request") == told.count("peer did not return a certificate") == 2
    assert told.count("unsupported protocol") == 2
