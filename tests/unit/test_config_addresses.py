"""Addresses, paths and files that a configuration cannot have are named with their key; none is a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raftkv.cli.main import run
from raftkv.errors import ConfigError
from raftkv.node.config import load_config, parse_config, render

UUID = "6f1d6d0e-5f0b-4c39-9d0a-2c1a9c6f4b7e"
ONE = {"id": 1, "address": "127.0.0.1:7401", "peer_address": "127.0.0.1:7501"}


def raw(**node: Any) -> dict[str, Any]:
    return {
        "cluster": {"id": UUID, "replicas": 1},
        "node": {"id": 1, "data_dir": "data", **node},
        "nodes": [dict(ONE)],
    }


@pytest.mark.parametrize("text", ["a..b", "a..b:1", "h:0", "http://h:1", "::1:1", "a b:1", "256.0.0.1:1", "h\0:1"])
@pytest.mark.parametrize("key", ["listen", "peer_listen", "metrics", "address", "peer_address"])
def test_no_address_is_taken_for_one(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^node\.toml: .*node\.{key}: address "):
        parse_config(raw(**{key: text}), "node.toml")


@pytest.mark.parametrize("text", ["a..b:1", "0.0.0.0:7502", "[::]:7502"])
def test_where_others_are_dialled_is_checked_too(text: str) -> None:
    with pytest.raises(ConfigError, match=r"dial\.2: address "):
        parse_config({**raw(), "dial": {"2": text}}, "x")
    other = {"id": 2, "address": "h:1", "peer_address": text}
    with pytest.raises(ConfigError, match=r"nodes\.1\.peer_address: address "):
        parse_config({**raw(), "nodes": [ONE, other]}, "x")


@pytest.mark.parametrize("key", ["address", "peer_address"])
@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "[::ffff:0.0.0.0]"])
def test_a_wildcard_is_listened_at_and_not_advertised(key: str, host: str) -> None:
    config = parse_config(raw(listen=f"{host}:7401", peer_listen=f"{host}:7501", metrics=f"{host}:7601"), "x")
    assert config.node.listen == f"{host}:7401"
    with pytest.raises(ConfigError, match="not dialable"):
        parse_config({**raw(), "nodes": [{**ONE, key: f"{host}:7999"}]}, "x")


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({"listen": "127.0.0.1:7501"}, "node.peer_listen: 127.0.0.1:7501 is node.listen already"),
        ({"listen": "0.0.0.0:7501"}, "node.peer_listen: 127.0.0.1:7501 is node.listen already"),
        ({"listen": "h:7", "peer_listen": "H:7"}, "node.peer_listen: H:7 is node.listen already"),
        ({"metrics": "[::]:7401"}, "node.metrics: [::]:7401 is node.listen already"),
        ({"metrics": "127.0.0.1:7501"}, "node.metrics: 127.0.0.1:7501 is node.peer_listen already"),
    ],
)
def test_a_node_listens_once_at_one_address(node: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(raw(**node), "x")
    assert told in str(caught.value)


def test_two_spellings_of_an_address_are_one() -> None:
    nodes = [{"id": 1, "address": "[::1]:1", "peer_address": "[0:0:0:0:0:0:0:1]:1"}]
    with pytest.raises(ConfigError, match=r"nodes: address \[::1\]:1 appears twice"):
        parse_config({**raw(), "nodes": nodes}, "x")


def test_a_node_that_joined_may_find_fewer_nodes_than_there_were_replicas() -> None:
    value = raw(joined=True)
    value["cluster"]["replicas"] = 3
    assert parse_config(value, "x").cluster.replicas == 3
    value["node"]["joined"] = False
    with pytest.raises(ConfigError, match="3 replicas need more than 1 nodes"):
        parse_config(value, "x")


# Files


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b"\xef\xbb\xbf" + render(parse_config(raw(), "x")).encode())
    assert load_config(path).node.id == 1


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('data_dir = "a\\u0000b"', "node.data_dir: a path holds no NUL"),
        ('data_dir = "d"\npeer_listen = "a..b"', "node.peer_listen: address 'a..b'"),
        ('data_dir = "d"\npeer_listen = "a..b:1"', "node.peer_listen: address 'a..b:1'"),
        ("data_dir = " + "[" * 5000, "not valid TOML"),
        ("data_dir = " + "1" * 5000, "not valid TOML"),
        ('data_dir = "loop/data"', "node.data_dir: "),
    ],
)
def test_a_file_that_cannot_be_is_told_and_is_no_traceback(
    tmp_path: Path, lines: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / "node.toml"
    nodes = '[[nodes]]\nid = 1\naddress = "127.0.0.1:7401"\npeer_address = "127.0.0.1:7501"\n'
    path.write_text(f'[cluster]\nid = "{UUID}"\nreplicas = 1\n[node]\nid = 1\n{lines}\n{nodes}')
    assert run(["serve", "--config", str(path)]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"raftkv: {path}: ")
    assert told in shown
