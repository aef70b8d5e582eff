"""Guarantee: docs/cli.md names every field of the JSON that ``raftkv`` prints."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from raftkv.api.status import ReplicaStatus, Role
from raftkv.cli.main import cli, run
from raftkv.local.cluster import LocalProcesses
from raftkv.local.shape import new_shape, places_from
from raftkv.local.status import _group_status
from tests.admin_world import World, world_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text()


def rows(first: str) -> dict[str, set[str]]:
    """The table whose heading begins with ``first``: its first cells -> the names in the second ones."""
    found = {}
    for line in PAGE[PAGE.index(f"| {first} |") :].splitlines()[2:]:
        if not line.startswith("|"):
            break
        cells = line.strip("|").split("|")
        found[cells[0].strip().strip("`")] = set(re.findall(r"`(\w+)`", cells[1]))
    return found


COMMANDS = rows("command")
PARTS = rows("of")


def test_every_command_with_json_is_in_the_table() -> None:
    context = click.Context(cli)
    having = set()
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        if any(option.name == "output" for option in command.params):
            having.add(name)
    assert {name.split()[0] for name in COMMANDS} == having | {"context"}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with world_of(nodes=1, groups=1) as running:
        yield running


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert run([*arguments, "-o", "json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_fields_of_records(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAFTKV_ENDPOINTS", world.endpoints)
    assert set(printed(capsys, "put", "a", "1", "--ttl", "1h")) <= COMMANDS["put"]
    assert set(printed(capsys, "get", "a")) == {"key", "value", "version", "expires_at"} <= COMMANDS["get"]
    assert printed(capsys, "delete", "a") == {"existed": True}
    assert printed(capsys, "delete", "a", code=4) == {"existed": False}
    assert "existed" in COMMANDS["delete"]
    assert set(printed(capsys, "incr", "n")) == {"value"} <= COMMANDS["incr"]
    assert set(printed(capsys, "append", "n", "0")) == {"length", "version"} <= COMMANDS["append"]
    assert printed(capsys, "touch", "n", "1h") == printed(capsys, "persist", "n") == {"existed": True}
    assert "existed" in COMMANDS["touch"] & COMMANDS["persist"]
    lines = ("check {n} absent", "put {n} 1", "incr {n}m", "get {n}", "get {n}o", "delete {n}o")
    done = printed(capsys, "txn", *lines)
    assert set(done) == {"succeeded", "number", "results"} <= COMMANDS["txn"]
    assert set().union(*done["results"]) <= PARTS["results"]
    (tmp_path / "few.jsonl").write_text('{"key": "a", "value_b64": "/w=="}\n')
    printed(capsys, "put", "a", "1")
    assert set(printed(capsys, "scan", "--limit", "1")) == {"key", "value", "version", "expires_at"} == COMMANDS["scan"]
    assert set(printed(capsys, "scan", "--keys-only", "--reverse", "--limit", "1")) == COMMANDS["scan"] - {"value"}
    assert printed(capsys, "count", "--prefix", "a") == {"count": 1}
    assert printed(capsys, "delete-prefix", "a") == {"removed": 1}
    assert printed(capsys, "delete-prefix", "a", code=4) == {"removed": 0}
    assert set(printed(capsys, "load", str(tmp_path / "few.jsonl"))) <= COMMANDS["load"]
    assert set(printed(capsys, "get", "a")) - COMMANDS["get"] == {"value_b64"} <= PARTS["records"]


def test_fields_of_a_local_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    LocalProcesses.create(tmp_path, new_shape(places_from(7401, 1), groups=1, replicas=1))
    status = printed(capsys, "status", "--data-dir", str(tmp_path), code=3)
    assert set(status) == COMMANDS["status"] - {"complete", "false"}
    assert set(status["nodes"][0]) == PARTS["nodes"] - {"null"}
    monkeypatch.setattr(LocalProcesses, "start_missing", lambda _: [])
    monkeypatch.setattr(LocalProcesses, "wait_ready", lambda *_: None)
    assert set(printed(capsys, "up", "--data-dir", str(tmp_path))) == set(status) | {"started"}
    assert "started" in COMMANDS["up"]
    group = _group_status(1, [(1, ReplicaStatus(1, Role.FOLLOWER, 0, 2, 0, 0, 0, 0, 0, (1,)))], frozenset({1}))
    assert set(group) | set(group["members"][0]) == PARTS["groups"] - {"null"}
