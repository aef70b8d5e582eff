"""Guarantee: variables come before the file, what is wrong names its source, and slips of the keyboard are noticed."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest

from raftkv.cli.serve import _with
from raftkv.errors import ConfigError
from raftkv.node import main, variables
from raftkv.node.config import NodeConfig, load_config, parse_config, render
from raftkv.node.credentials import FILE_VARIABLE, VARIABLE

UUID = "6f1d6d0e-5f0b-4c39-9d0a-2c1a9c6f4b7e"
DOCS = Path(__file__).resolve().parents[2] / "docs"


def raw() -> dict[str, Any]:
    nodes = [{"id": i, "address": f"127.0.0.1:740{i}", "peer_address": f"127.0.0.1:750{i}"} for i in (1, 2, 3)]
    return {"cluster": {"id": UUID}, "node": {"id": 2, "data_dir": "data", "log_level": "warning"}, "nodes": nodes}


def config(**environ: str) -> NodeConfig:
    return parse_config(raw(), "node.toml", {f"RAFTKV_{name}": value for name, value in environ.items()})


def told(**environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**environ)
    return str(caught.value)


def test_texts_become_what_the_settings_are() -> None:
    made = config(
        NODE_LOG_LEVEL="debug",
        NODE_LOG_MAX_BYTES="0",
        NODE_JOINED="TRUE",
        NODE_METRICS="[::1]:7602",
        RAFT_HEARTBEAT="0.05",
        RAFT_ELECTION_MAX="2",
        CLUSTER_GROUPS="5",
    )
    assert (made.node.log_level, made.node.log_max_bytes, made.node.joined) == ("debug", 0, True)
    assert (made.node.metrics, made.raft.heartbeat, made.raft.election_max) == ("[::1]:7602", 0.05, 2.0)
    assert made.cluster.groups == 5
    assert type(made.node.log_level) is str
    assert parse_config(raw(), "node.toml", {}).node.log_level == "warning"


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    assert config(NODE_LOG_LEVEL="", NODES="").node.log_level == "warning"


def test_the_node_itself_may_be_named_by_a_variable() -> None:
    made = config(NODE_ID="3")
    assert (made.node.id, made.node.address, made.node.peer_listen) == (3, "127.0.0.1:7403", "127.0.0.1:7503")
    assert told(NODE_ID="9") == (
        "node.toml: nodes: there is no entry for this node, id 9 (with RAFTKV_NODE_ID of the environment)"
    )
    assert told(NODE_ID="two").startswith("RAFTKV_NODE_ID: expected `int`, got 'two'")


def test_nodes_and_where_they_are_dialled() -> None:
    made = config(NODES="1=a:1/a:2, 2=b:1/[::1]:2", DIAL="3=h:9", CLUSTER_REPLICAS="1")
    assert [(peer.id, peer.address, peer.peer_address) for peer in made.nodes] == [
        (1, "a:1", "a:2"),
        (2, "b:1", "[::1]:2"),
    ]
    assert (made.node.address, made.dial) == ("b:1", {3: "h:9"})
    for name, text, problem in (
        ("NODES", "a:1/a:2", "RAFTKV_NODES: 'a:1/a:2' is not of the form 1=HOST:PORT/HOST:PORT"),
        ("NODES", "2=b:1", "RAFTKV_NODES: 'b:1' is not a client's and a peer's address"),
        ("NODES", "2=b:1/c", "RAFTKV_NODES: address 'c' is not of the form host:port"),
        ("NODES", "2=", "RAFTKV_NODES: nothing is given for '2'"),
        ("DIAL", "2=h:1,2=h:2", "RAFTKV_DIAL: a node appears twice"),
        ("DIAL", "x=h:1", "RAFTKV_DIAL: 'x' is not the id of a node"),
        ("DIAL", "3=h:0", "RAFTKV_DIAL: address "),
    ):
        assert problem in told(**{name: text})


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("NODE_LOG_LEVEL", "loud", "expected 'debug' or 'info' or 'warning' or 'error', got 'loud'"),
        ("NODE_MEMORY", "1.5", "expected `int`, got '1.5'"),
        ("NODE_JOINED", "maybe", "expected `bool`, got 'maybe'"),
        ("RAFT_HEARTBEAT", "nan", "expected `float` >= 0.01, got 'nan'"),
        ("CLUSTER_SLOTS", "1000", "must be a power of two"),
        ("NODE_LISTEN", "h:0", "address 'h:0'"),
        ("SECURITY_SECRET", "short", "the secret has 5 bytes, the least is 16"),
    ],
)
def test_a_wrong_value_names_its_variable_and_not_the_file(name: str, text: str, problem: str) -> None:
    said = told(**{name: text})
    assert said.startswith(f"RAFTKV_{name}: {problem}")
    assert "node.toml" not in said


def test_what_is_wrong_in_the_file_and_in_a_variable_is_told_apart() -> None:
    value = raw()
    value["node"]["reads"] = "leases"
    with pytest.raises(ConfigError) as caught:
        parse_config(value, "node.toml", {"RAFTKV_NODE_LOG_BACKUPS": "0"})
    assert str(caught.value) == (
        "RAFTKV_NODE_LOG_BACKUPS: expected `int` >= 1, got '0'; node.toml: node.reads: expected 'lease' or 'quorum' "
        "(with RAFTKV_NODE_LOG_BACKUPS of the environment)"
    )


def test_what_does_not_fit_together_names_the_variables_too() -> None:
    said = told(RAFT_HEARTBEAT="0.4")
    assert "heartbeat must be less than a third of election_min" in said
    assert said.endswith("(with RAFTKV_RAFT_HEARTBEAT of the environment)")


def test_options_come_before_variables_and_these_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "node.toml"
    path.write_text(render(parse_config(raw(), "x")))
    monkeypatch.setenv("RAFTKV_NODE_LOG_FILE", "by-variable.log")
    monkeypatch.setenv("RAFTKV_NODE_LOG_FORMAT", "json")
    read = load_config(path)
    assert (read.node.log_level, read.node.log_format) == ("warning", "json")
    assert read.node.log_file == str(tmp_path / "by-variable.log")
    assert _with(read, {"log_format": "text"}, {}).node.log_format == "text"


def test_a_secret_takes_the_place_of_another_source_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "node.toml"
    path.write_text(render(parse_config({**raw(), "security": {"secret_file": "by-file"}}, "x")))
    monkeypatch.setenv(VARIABLE, "known to all nodes")
    read = load_config(path)
    assert (read.security.secret, read.security.secret_file) == ("known to all nodes", None)
    chosen = _with(read, {}, {"secret_file": "/by-option"})
    assert (chosen.security.secret, chosen.security.secret_file) == (None, "/by-option")
    monkeypatch.setenv(FILE_VARIABLE, "/by-variable")
    with pytest.raises(ConfigError, match="secret and secret_file: give one of them"):
        load_config(path)
    monkeypatch.delenv(VARIABLE)
    assert load_config(path).security.secret_file == "/by-variable"


def test_variables_that_look_like_settings_and_are_none_are_noticed() -> None:
    slips = ["RAFTKV_LOG_LEVEL", "RAFTKV_NODE_LOGLEVEL", "RAFTKV_NOD_LOG_LEVEL", "RAFTKV_SECRET", "RAFTKV_MEMORY"]
    others = ["RAFTKV_ENDPOINTS", "RAFTKV_TLS_CERT", "RAFTKV_CONTEXT", "RAFTKV_DEBUG", "RAFTKV_SERVICE_HOST", "PATH"]
    known = [*variables.names(NodeConfig), "RAFTKV_DIAL", "RAFTKV_NODES"]
    assert variables.unknown(NodeConfig, [*slips, *others, *known]) == sorted(slips)


def test_the_log_names_the_variables_and_not_what_they_hold(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "known to all nodes")
    monkeypatch.setenv("RAFTKV_LOG_LEVEL", "debug")
    with caplog.at_level(logging.INFO):
        main._tell_variables()
    assert caplog.messages == [
        f"settings from variables: {VARIABLE}",
        "variables that set nothing, as they name no setting: RAFTKV_LOG_LEVEL",
    ]


def test_every_variable_that_the_documents_name_exists() -> None:
    known = {*variables.names(NodeConfig), "RAFTKV_DIAL", "RAFTKV_NODES"}
    sections = "|".join(sorted({name.split("_")[1] for name in variables.names(NodeConfig)}))
    for page in DOCS.glob("*.md"):
        named = set(re.findall(rf"\bRAFTKV_(?:{sections})_[A-Z_]+[A-Z]\b", page.read_text()))
        assert named - known == set(), page
