"""Guarantee: docs/admin.md names every command, exit code, kind of problem and field of JSON that there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from raftkv.cli.admin import health
from raftkv.cli.admin.common import AdminExit
from raftkv.cli.admin.main import cli
from tests.admin_world import Admin, world_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "admin.md").read_text()
NAMED = set(re.findall(r"`([a-z_0-9]+)`", PAGE))


def rows(first: str) -> list[str]:
    """First cells of the table whose heading begins with ``first``."""
    lines = PAGE[PAGE.index(f"| {first} |") :].splitlines()[2:]
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append(line.strip("|").split("|")[0].strip().strip("`"))
    return found


def test_exit_codes() -> None:
    assert [int(cell) for cell in rows("exit code")] == [int(code) for code in AdminExit]


def test_kinds_of_problems() -> None:
    found = set(re.findall(r'_problem\(\s*"(\w+)"', Path(health.__file__).read_text()))
    for source in (ROOT / "raftkv" / "node").glob("*.py"):
        found |= set(re.findall(r'\bProblem\(\s*"(\w+)"', source.read_text()))
    assert set(rows("kind")) == found


def test_every_command_is_shown_or_named() -> None:
    context = click.Context(cli)
    for noun in cli.list_commands(context):
        command = cli.get_command(context, noun)
        verbs = command.list_commands(context) if isinstance(command, click.Group) else [""]
        for verb in verbs:
            assert re.search(rf"(`|\$ raftkv-admin |raftkv-admin ){noun} ?{verb}\b", PAGE), f"{noun} {verb}"


def fields(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not key.isdigit():
                yield key
            yield from fields(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner)


def test_every_field_of_json_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with world_of(nodes=3, groups=2) as world, world_of(nodes=1, groups=1) as empty:
        admin = Admin(world.endpoints, capsys, monkeypatch)
        world.put(b"a", b"1")
        assert world.join() == 4
        world.corrupt[3, 2, world.map.slots_of(2)[0]] = b"wrong" + bytes(11)
        backup = str(tmp_path / "backup")
        reports = [
            admin.json("check consistency", code=5),
            admin.json("backup create", backup),
            admin.json("backup verify", backup),
            admin.json("backup restore", backup, "--endpoints", empty.endpoints),
            admin.json("cluster status"),
            admin.json("map show"),
            admin.json("map show --key a"),
            admin.json("slot stats"),
            admin.json("slot move 0-99 --to 2 --wait"),
            admin.json("group add"),
            admin.json("rebalance plan"),
            admin.json("rebalance apply --wait"),
            admin.json("group list"),
            admin.json("group drain 3 --wait"),
            admin.json("group remove 3"),
            admin.json("node list"),
            admin.json("node add"),
            admin.json("node replace 2 4"),
            admin.json("node add 4"),
            admin.json("node remove 2"),
            admin.json("leader transfer 0 1"),
            admin.json("leader balance"),
        ]
        world.stop_node(3)
        reports.append(admin.json("cluster health", code=5))
        monkeypatch.setattr("raftkv.cli.admin.checks._SILENCE", 0.1)
        reports.append(admin.json("check consistency", code=6))
    assert {key for report in reports for key in fields(report)} - NAMED == set()
