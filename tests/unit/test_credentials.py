"""Guarantee: a node starts only with what proves who it is, and where it may be reached is what somebody has said."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raftkv.addresses import parse_listen_address
from raftkv.errors import ConfigError
from raftkv.node.config import NodeConfig, load_config, parse_config, render
from raftkv.node.credentials import FILE_VARIABLE, VARIABLE, check_exposure, peer_secret


def config(security: Mapping[str, Any] | None = None, **node: Any) -> NodeConfig:
    raw = {
        "cluster": {"id": "6f1d6d0e-5f0b-4c39-9d0a-2c1a9c6f4b7e", "replicas": 1},
        "node": {"id": 1, "data_dir": "data", **node},
        "security": dict(security or {}),
        "nodes": [{"id": 1, "address": "127.0.0.1:7401", "peer_address": "127.0.0.1:7501"}],
    }
    return parse_config(raw, "test", os.environ)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, FILE_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def test_a_secret_is_found_in_a_file_or_in_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def proof(security: dict[str, Any] | None = None) -> bytes:
        from raftkv.peer.handshake import _Use

        return peer_secret(config(security)).mac(_Use.DIALLER, "hello")

    file, other = tmp_path / "peer.secret", tmp_path / "other"
    file.write_text("known to all nodes\n")
    other.write_text("known to no node at all")
    by_file = proof({"secret_file": str(file)})
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, " known to all nodes ")
        assert proof() == proof({"secret_file": str(other)}) == by_file
    monkeypatch.setenv(FILE_VARIABLE, str(other))
    assert proof() == proof({"secret": "known to no node at all"}) != by_file


def test_a_missing_or_short_secret_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=f"security.secret_file is missing: .* {FILE_VARIABLE} or {VARIABLE}"):
        peer_secret(config())
    with pytest.raises(ConfigError, match="security.secret_file: .*none: cannot read it: No such file"):
        peer_secret(config({"secret_file": str(tmp_path / "none")}))
    (tmp_path / "short").write_text("short")
    with pytest.raises(ConfigError, match=r"security\.secret_file: .*short: the secret has 5 bytes, the least is 16$"):
        peer_secret(config({"secret_file": str(tmp_path / "short")}))
    monkeypatch.setenv(VARIABLE, "short")
    with pytest.raises(ConfigError, match=f"^{VARIABLE}: the secret has 5 bytes, the least is 16$"):
        peer_secret(config())


def test_paths_count_from_the_file_and_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(render(config({"secret_file": "../peer.secret", "insecure": True})))
    read = load_config(path).security
    assert (read.secret_file, read.insecure) == (f"{tmp_path}/../peer.secret", True)


@pytest.mark.parametrize("name", ["listen", "peer_listen", "metrics"])
def test_other_machines_may_reach_a_node_only_if_somebody_says_so(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match=rf"^node\.{name}: 0\.0\.0\.0:9 may be reached from other machines"):
        check_exposure(config({}, **{name: "0.0.0.0:9"}))
    assert caplog.records == []
    check_exposure(config({"insecure": True}, **{name: "0.0.0.0:9"}))
    (line,) = caplog.messages
    assert line == "insecure: nothing is encrypted, and other machines may reach 0.0.0.0:9"
    check_exposure(config({}, **{name: "127.0.0.1:9"}))
    assert len(caplog.records) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.7.6", "[::1]", "localhost", "LOCALHOST", "[::ffff:127.0.0.1]"])
def test_loopback_addresses(host: str) -> None:
    assert parse_listen_address(f"{host}:1").loopback


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "10.0.0.1", "[::]", "[::ffff:10.0.0.1]", "kv-1", "localhost.example", "128.0.0.1"]
)
def test_all_others_are_not(host: str) -> None:
    assert not parse_listen_address(f"{host}:1").loopback
