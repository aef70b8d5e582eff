"""Exit codes tell a script what happened; what is said to people goes to stderr."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from raftkv.cli.common import Exit, argument_bytes, describe, exit_code, field
from raftkv.cli.main import run
from raftkv.errors import (
    ConditionFailed,
    ConfigError,
    DeadlineExceeded,
    InvalidArgument,
    OutcomeUnknown,
    RaftKVError,
    Unavailable,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConditionFailed("x", 3), Exit.NOT_MET),
        (Unavailable("x"), Exit.UNREACHABLE),
        (DeadlineExceeded("x"), Exit.UNREACHABLE),
        (OutcomeUnknown("x"), Exit.ERROR),
        (InvalidArgument("x"), Exit.ERROR),
        (ConfigError("x"), Exit.ERROR),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(error: RaftKVError, code: Exit) -> None:
    assert exit_code(error) == code


def test_a_write_that_may_have_happened_is_told_as_such() -> None:
    assert "may or may not have taken effect" in describe(DeadlineExceeded("no answer"))
    assert describe(Unavailable("no answer")) == "no answer"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["get"],
        ["get", "k", "--nonsense"],
        ["put", "k"],
        ["put", "k", "v", "--if-absent", "--if-version", "3"],
        ["put", "k", "v", "--ttl", "0"],
        ["get", "k", "--timeout", "0"],
        ["get", "k", "--consistency", "eventual"],
        ["up", "--nodes", "0"],
        ["load", "f.csv", "--key-column", "a", "--value-column", "a"],
        ["serve"],
    ],
)
def test_wrong_usage_is_said_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == Exit.USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Error: " in shown.err


def test_help_lists_every_command_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == Exit.DONE
    text = capsys.readouterr().out
    for command in (
        "up",
        "down",
        "status",
        "serve",
        "health",
        "get",
        "put",
        "delete",
        "scan",
        "count",
        "delete-prefix",
        "shell",
        "load",
        "dump",
    ):
        assert f"\n  {command} " in text
        assert run([command, "--help"]) == Exit.DONE
    for code in Exit:
        assert re.search(rf"^ +{code.value} +\w", text, re.MULTILINE)


def test_serve_refuses_a_wrong_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["serve", "--config", "/nonexistent/node.toml"]) == Exit.ERROR
    assert "/nonexistent/node.toml: cannot read it" in capsys.readouterr().err


def test_nobody_at_the_endpoints_is_told_within_the_time_out(capsys: pytest.CaptureFixture[str]) -> None:
    # Port 1 of the loopback interface: nobody listens there.
    assert run(["get", "k", "--endpoints", "127.0.0.1:1", "--timeout", "0.5"]) == Exit.UNREACHABLE
    assert capsys.readouterr().err.startswith("raftkv: ")


def test_a_load_that_reaches_nobody_names_each_address_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"key": "a", "value": "b"}\n')
    code = run(["load", str(source), "--endpoints", "127.0.0.1:1", "--timeout", "500ms"])
    assert code == Exit.UNREACHABLE
    assert capsys.readouterr().err.startswith("raftkv: no node answers: 127.0.0.1:1: failed to connect")


def test_bytes_of_arguments_survive() -> None:
    assert argument_bytes("a\udcff") == b"a\xff"
    assert field("key", b"a\xff") == {"key_b64": "Yf8="}
    assert field("key", "ü".encode()) == {"key": "ü"}
