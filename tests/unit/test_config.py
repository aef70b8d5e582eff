"""A wrong configuration is refused with the file and the key named; a right one survives being written and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv.errors import ConfigError
from raftkv.node.config import load_config, parse_config, render

UUID = "6f1d6d0e-5f0b-4c39-9d0a-2c1a9c6f4b7e"


def raw() -> dict[str, Any]:
    nodes = [{"id": i, "address": f"127.0.0.1:740{i}", "peer_address": f"127.0.0.1:750{i}"} for i in (1, 2, 3)]
    return {"cluster": {"id": UUID}, "node": {"id": 2, "data_dir": "data"}, "nodes": nodes}


def test_addresses_of_the_node_default_to_its_entry_and_listening_to_advertising() -> None:
    config = parse_config(raw(), "x")
    assert (config.node.address, config.node.peer_address) == ("127.0.0.1:7402", "127.0.0.1:7502")
    assert (config.node.listen, config.node.peer_listen) == ("127.0.0.1:7402", "127.0.0.1:7502")
    assert (config.cluster.slots, config.cluster.groups, config.cluster.replicas) == (1024, 3, 3)
    assert (config.raft.election_min, config.raft.election_max, config.raft.heartbeat) == (0.5, 0.9, 0.1)


def test_a_node_that_has_moved_says_so_and_its_entry_may_stay_as_it_was() -> None:
    value = raw()
    value["node"] |= {"address": "127.0.0.1:7409", "peer_address": "127.0.0.1:7509"}
    config = parse_config(value, "x")
    assert (config.node.address, config.node.listen) == ("127.0.0.1:7409", "127.0.0.1:7409")
    assert (config.node.peer_address, config.node.peer_listen) == ("127.0.0.1:7509", "127.0.0.1:7509")


def test_metrics_are_served_nowhere_unless_asked_for() -> None:
    assert parse_config(raw(), "x").node.metrics is None
    assert "metrics" not in render(parse_config(raw(), "x"))


def test_dial_overrides_where_one_peer_is_reached() -> None:
    value = raw()
    value["dial"] = {"3": "127.0.0.1:9999", "4": "127.0.0.1:9998"}
    config = parse_config(value, "x")
    assert config.dial_addresses() == {1: "127.0.0.1:7501", 3: "127.0.0.1:9999"}
    assert config.dial_address(4, "10.0.0.4:1") == "127.0.0.1:9998", "it may join later"
    assert config.dial_address(5, "10.0.0.5:1") == "10.0.0.5:1"


@pytest.mark.parametrize(
    ("key", "address", "named"),
    [
        ("0", "h:1", "dial.0"),
        ("65536", "h:1", "dial.65536"),
        ("02", "h:1", "'02' is not the id of a node"),
        ("-1", "h:1", "'-1' is not the id of a node"),
        ("two", "h:1", "'two' is not the id of a node"),
        ("²", "h:1", "'²' is not the id of a node"),
        ("2", "h:0", "dial.2"),
        ("2", 7, "dial.2"),
    ],
)
def test_a_wrong_entry_of_dial_is_named(key: str, address: object, named: str) -> None:
    with pytest.raises(ConfigError, match="^x: dial") as caught:
        parse_config({**raw(), "dial": {key: address}}, "x")
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("section", "key", "value", "named"),
    [
        ("cluster", "id", "nonsense", "cluster.id"),
        ("cluster", "slots", 1000, "cluster.slots: must be a power of two"),
        ("cluster", "slots", "1024", "cluster.slots"),
        ("cluster", "groups", 0, "cluster.groups"),
        ("cluster", "replicas", 4, "cluster.replicas"),
        ("cluster", "shards", 1, "cluster.shards: unknown key"),
        ("node", "id", 9, "no entry for this node, id 9"),
        ("node", "id", "2", "node.id"),
        ("node", "data_dir", "", "node.data_dir"),
        ("node", "address", "127.0.0.1", "node.address"),
        ("node", "listen", "host:0", "node.listen"),
        ("node", "metrics", "7601", "node.metrics"),
        ("node", "metrics", ":7601", "node.metrics"),
        ("node", "metrics", "127.0.0.1:7402", "node.metrics: 127.0.0.1:7402 is node.listen already"),
        ("node", "metrics", "127.0.0.1:7502", "node.metrics: 127.0.0.1:7502 is node.peer_listen already"),
        ("node", "reads", "leases", "node.reads"),
        ("node", "log_level", "loud", "node.log_level"),
        ("raft", "heartbeat", 0.2, "heartbeat must be less than a third of election_min"),
        ("raft", "election_max", 0.5, "election_max must be at least 1.2 times election_min"),
        ("raft", "snapshot_bytes", 1, "raft.snapshot_bytes"),
    ],
)
def test_a_wrong_key_is_named(section: str, key: str, value: object, named: str) -> None:
    wrong = raw()
    wrong.setdefault(section, {})[key] = value
    with pytest.raises(ConfigError, match="^cluster.toml: ") as caught:
        parse_config(wrong, "cluster.toml")
    assert named in str(caught.value)


def test_missing_and_unknown_sections_are_named() -> None:
    with pytest.raises(ConfigError, match="cluster: is missing"):
        parse_config({"node": {"id": 1, "data_dir": "d"}, "nodes": []}, "x")
    with pytest.raises(ConfigError, match="extra: unknown key"):
        parse_config({**raw(), "extra": {}}, "x")
    with pytest.raises(ConfigError, match="node"):
        parse_config({**raw(), "node": 7}, "x")


@pytest.mark.parametrize("key", ["id", "address", "peer_address"])
def test_two_nodes_cannot_share_an_id_or_an_address(key: str) -> None:
    wrong = raw()
    wrong["nodes"][0][key] = wrong["nodes"][2][key]
    with pytest.raises(ConfigError, match="appears twice"):
        parse_config(wrong, "x")


def test_files_that_cannot_be_read_or_are_not_toml_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.toml: cannot read it"):
        load_config(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"[cluster\n")
    with pytest.raises(ConfigError, match="bad.toml: not valid TOML"):
        load_config(bad)
    bad.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="bad.toml: not valid TOML"):
        load_config(bad)


def test_a_relative_data_dir_counts_from_the_files_folder(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(render(parse_config(raw(), "x")))
    assert load_config(path).node.data_dir == str(tmp_path.resolve() / "data")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: "\0" not in text))
def test_rendering_and_reading_gives_the_same_configuration(data_dir: str) -> None:
    import tomllib

    value = raw()
    value["node"]["data_dir"] = data_dir
    value["node"]["metrics"] = "[::1]:7602"
    value["dial"] = {"1": "[::1]:9999", "17": "h:1"}
    config = parse_config(value, "x")
    assert parse_config(tomllib.loads(render(config)), "x") == config


def test_all_that_is_wrong_is_told_at_once_by_its_key_and_what_is_expected() -> None:
    wrong = raw()
    wrong["node"] |= {"reads": "leases", "log_backups": 0, "joined": "yes", "memory": 1.5, "metrics": 7}
    wrong["raft"] = {"heartbeat": float("nan"), "timeout": 1}
    wrong["dial"] = {"x": "h:1", "9": 5, "9" * 5000: "h:1"}
    wrong["nodes"][1] = {"id": 2, "address": "127.0.0.1"}
    wrong["nodes"].append("h:1")
    with pytest.raises(ConfigError) as caught:
        parse_config(wrong, "x")
    assert str(caught.value).replace("9" * 5000, "9...").split("; ") == [
        "x: node.address: address '127.0.0.1' is not of the form host:port",
        "node.listen: address '127.0.0.1' is not of the form host:port",
        "node.peer_address: is missing",
        "node.peer_listen: is missing",
        "node.metrics: expected `str`, got `int`",
        "node.reads: expected 'lease' or 'quorum'",
        "node.log_backups: expected `int` >= 1",
        "node.memory: expected `int`, got `float`",
        "node.joined: expected `bool`, got `str`",
        "raft.heartbeat: expected `float` >= 0.01",
        "raft.timeout: unknown key",
        "dial.x: 'x' is not the id of a node",
        "dial.9: expected `str`, got `int`",
        "dial.9...: '9...' is not the id of a node",
        "nodes.1.address: address '127.0.0.1' is not of the form host:port",
        "nodes.1.peer_address: is missing",
        "nodes.3: expected a table",
    ]
