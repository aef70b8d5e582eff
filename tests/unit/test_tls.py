"""Guarantee: a certificate is good for the node that it names, and files that do not fit together change nothing."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path
from typing import Any

import pytest

from raftkv.errors import ConfigError
from raftkv.local.certificates import Authority, CertificateError
from raftkv.node.config import NodeConfig, parse_config
from raftkv.node.credentials import Certificates, certificates
from raftkv.tls import TlsFiles, certificate_of, names_of, node_name

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


def test_no_pattern_and_no_common_name_is_a_name(authority: Authority) -> None:
    found = certificate_of(authority.node(CLUSTER, 4, [f"*.{CLUSTER}"]))
    assert "does not name node 3" in Certificates.doubt(found, CLUSTER, 3)
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


def test_a_new_connection_has_the_latest_certificates(authority: Authority, other: Authority) -> None:
    def meet(server: ssl.SSLContext, client: ssl.SSLContext) -> dict[str, Any] | None:
        near, far = ssl.MemoryBIO(), ssl.MemoryBIO()
        sides = [server.wrap_bio(near, far, server_side=True), client.wrap_bio(far, near)]
        try:
            for _ in range(6):
                for side in sides:
                    try:
                        side.do_handshake()
                    except ssl.SSLWantReadError:
                        pass
            return dict(sides[0].getpeercert() or {}), dict(sides[1].getpeercert() or {})  # type: ignore[return-value]
        except ssl.SSLError:
            return None

    files = authority.node(CLUSTER, 5, ["first"])
    held = Certificates(files, CLUSTER, 5, ask_clients=True)
    first = held.dialling
    assert meet(held.peers, first) is not None
    strange = other.node(CLUSTER, 5, ["second"])
    assert meet(held.peers, strange.context(server=False)) is None
    for name in ("ca", "key", "cert"):
        Path(getattr(files, name)).write_bytes(Path(getattr(strange, name)).read_bytes())
    held.look()
    assert meet(held.peers, first) is None
    assert meet(held.peers, strange.context(server=False)) is not None
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
    with pytest.raises(CertificateError, match="not the name or address of a host"):
        made.node(CLUSTER, 1, ["é"])
