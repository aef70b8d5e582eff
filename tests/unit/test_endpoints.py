"""Endpoints that cannot be are refused at once: by both clients, by every command, from options and environment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from click.testing import CliRunner

import raftkv
from bench.running import load_command
from raftkv.cli.admin.main import run as run_admin
from raftkv.cli.main import run
from raftkv.client.routing import parse_endpoints
from raftkv.errors import InvalidArgument
from raftkv.text import shown

NO_ENDPOINTS: list[Any] = [
    ["h:1", 7],
    ["h:1", 10**5000],
    10**5000,
    ["h:1", None],
    ["h:1", b"h:2"],
    ["h:1", ["h:2"]],
    ["h:1,h:2"],
    None,
    7,
    1.5,
    True,
    b"h:1",
    bytearray(b"h:1"),
    [],
    [""],
    "",
    " , ",
    "h",
    "h:0",
    "h:65536",
    "http://h:1",
    "h:1,http://h:1",
    "::1:1",
    "a:1;b:1",
    "a..b:1",
    "256.0.0.1:1",
    "0.0.0.0:7401",
    "[::]:7401",
    "dns:///h:1",
    "h:1\0",
]
TEXTS = [one for one in NO_ENDPOINTS if isinstance(one, str) and "\0" not in one]


@pytest.mark.parametrize("endpoints", NO_ENDPOINTS, ids=lambda one: shown(one)[:40])
def test_a_client_of_endpoints_that_cannot_be_is_never_made(endpoints: Any) -> None:
    async def make() -> None:
        raftkv.AsyncClient(endpoints)

    with pytest.raises(InvalidArgument):
        asyncio.run(make())
    with pytest.raises(InvalidArgument):
        raftkv.Client(endpoints)


@pytest.mark.parametrize("endpoints", ["a:1, b:2,,a:1,\n", ["a:1", "b:2"], ("a:1 ", "b:2"), iter(["a:1", "b:2"])])
def test_endpoints_are_text_or_a_sequence(endpoints: Any) -> None:
    assert parse_endpoints(endpoints) == ("a:1", "b:2")


@pytest.mark.parametrize("text", TEXTS)
def test_the_commands_call_it_wrong_usage(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["get", "k", "--endpoints", text]) == 2
    assert run(["serve", "--join", text, "--data-dir", "never-made", "--address", "h:1"]) == 2
    assert run_admin(["cluster", "status", "--endpoints", text]) == 2
    assert run_admin(["--endpoints", text, "node", "list"]) == 2
    # Asks nobody: it prints the command with which a node joins.
    assert run_admin(["node", "add", "--endpoints", text]) == 2
    assert CliRunner().invoke(load_command, ["--endpoints", text]).exit_code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["http://h:1", "::1:1", "a:1;b:1", ","])
def test_so_does_the_environment(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAFTKV_ENDPOINTS", text)
    assert run(["get", "k"]) == 2
    assert "RAFTKV_ENDPOINTS" in capsys.readouterr().err
    assert run_admin(["node", "list"]) == 2
    # An option that outdoes it is all that counts.
    assert run(["get", "k", "--endpoints", "127.0.0.1:1", "--timeout", "0.1"]) == 3
    assert run_admin(["node", "list", "--endpoints", "127.0.0.1:1", "--timeout", "0.1"]) == 3
