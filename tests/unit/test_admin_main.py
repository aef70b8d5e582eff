"""raftkv-admin says on stderr what is wrong, ends with the right code, and never shows a traceback."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from raftkv.cli.admin.common import AdminExit, Partial, Precondition, exit_code, explain
from raftkv.cli.admin.main import cli, run
from raftkv.errors import (
    ConditionFailed,
    DeadlineExceeded,
    InvalidArgument,
    OutcomeUnknown,
    Unavailable,
)
from shards.planner import PlanError
from tests.admin_world import Admin, world_of

# Nobody listens at port 1 of the loopback interface.
NOBODY = ["--endpoints", "127.0.0.1:1", "--timeout", "0.3"]


def commands() -> Iterator[list[str]]:
    """Every command, as its words."""
    context = click.Context(cli)
    for noun in cli.list_commands(context):
        command = cli.get_command(context, noun)
        if isinstance(command, click.Group):
            for verb in command.list_commands(context):
                yield [noun, verb]
        else:
            yield [noun]


COMMANDS = list(commands())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConditionFailed("x"), AdminExit.PRECONDITION),
        (Precondition("x"), AdminExit.PRECONDITION),
        (PlanError("x"), AdminExit.PRECONDITION),
        (Unavailable("x"), AdminExit.UNREACHABLE),
        (DeadlineExceeded("x"), AdminExit.UNREACHABLE),
        (Partial("x"), AdminExit.PARTIAL),
        (OutcomeUnknown("x"), AdminExit.ERROR),
        (InvalidArgument("x"), AdminExit.ERROR),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(error: Exception, code: AdminExit) -> None:
    assert exit_code(error) == code
    assert explain(error).startswith("x")


def test_help_lists_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == AdminExit.DONE
    text = capsys.readouterr().out
    for code in AdminExit:
        assert re.search(rf"^ +{code.value} +\w", text, re.MULTILINE)
    for words in COMMANDS:
        assert re.search(rf"^  {words[0]} ", text, re.MULTILINE)
        assert run([*words, "--help"]) == AdminExit.DONE
        assert ("--endpoints" in capsys.readouterr().out) == (
            words[0] not in ("completion", "cert") and words != ["backup", "verify"]
        )


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["cluster"],
        ["cluster", "nonsense"],
        ["cluster", "status", "--nonsense"],
        ["cluster", "status", "-o", "xml"],
        ["cluster", "status", "--timeout", "0"],
        ["slot", "move", "1"],
        ["slot", "move", "9-1", "--to", "1"],
        ["rebalance", "apply", "--rate", "fast"],
        ["rebalance", "apply", "--concurrency", "0"],
        ["node", "drain", "x"],
        ["leader", "transfer", "1"],
        ["completion", "tcsh"],
        ["group", "remove", "1"],
        ["node", "remove", "1"],
        ["node", "replace", "1", "2"],
    ],
)
def test_wrong_usage_is_said_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == AdminExit.USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Error: " in shown.err or "Usage: " in shown.err


def test_without_a_terminal_what_is_destructive_needs_yes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["node", "remove", "3", *NOBODY]) == AdminExit.USAGE
    assert "give --yes to confirm" in capsys.readouterr().err
    assert run(["node", "remove", "3", "--yes", *NOBODY]) == AdminExit.UNREACHABLE


def test_no_is_an_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("raftkv.cli.admin.common.sys.stdin", Terminal())
    monkeypatch.setattr("raftkv.cli.admin.common.click.confirm", lambda *_, **__: False)
    assert run(["node", "remove", "3", *NOBODY]) == AdminExit.PRECONDITION
    assert "nothing was changed" in capsys.readouterr().err


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] not in ("backup", "cert", "completion")])
def test_nobody_at_the_endpoints(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    more = {
        "slot move": ["1", "--to", "1"],
        "node add": ["4"],
        "node replace": ["1", "2"],
        "leader transfer": ["1", "1"],
        "rebalance tune": ["--rate", "1MB"],
        **{f"user {verb}": ["app"] for verb in ("add", "remove", "rotate")},
        "user passwd": ["app", "--remove"],
        **{f"user {verb}": ["app", "orders"] for verb in ("grant", "revoke")},
        **{f"role {verb}": ["orders"] for verb in ("add", "remove")},
        **{f"role {verb}": ["orders", "read"] for verb in ("grant", "revoke")},
        **{f"group {verb}": ["1"] for verb in ("drain", "remove")},
        **{f"node {verb}": ["1"] for verb in ("drain", "undrain", "remove")},
    }
    assert run(["--yes", *words, *more.get(" ".join(words), []), *NOBODY]) == AdminExit.UNREACHABLE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("raftkv-admin: ")
    assert "127.0.0.1:1: " in shown.err


def test_endpoints_must_be_endpoints(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cluster", "status", "--endpoints", "nonsense"]) == AdminExit.USAGE
    assert "'nonsense' is not of the form host:port" in capsys.readouterr().err


def test_options_may_stand_before_or_after_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with world_of(nodes=1, groups=1) as world:
        admin = Admin(world.endpoints, capsys, monkeypatch)
        assert admin("-o json map show") == 0
        assert admin.out.startswith('{"schema": 1, ')
        assert admin("-o json map show -o table") == 0
        assert not admin.out.startswith("{")
        monkeypatch.setenv("RAFTKV_ENDPOINTS", "127.0.0.1:1")
        assert admin("--endpoints", world.endpoints, "map", "show") == 0
        assert admin("map show --endpoints", world.endpoints) == 0
        assert admin("map show --timeout 0.3") == AdminExit.UNREACHABLE


def test_one_node_that_answers_is_enough(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with world_of(nodes=3, groups=1) as world:
        admin = Admin(world.endpoints, capsys, monkeypatch)
        assert admin("map show --endpoints", f"127.0.0.1:1,{world.address(2)}") == 0


def test_a_user_who_interrupts_learns_what_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(main: object) -> None:
        main.close()  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr("raftkv.cli.admin.common.run_coroutine", interrupted)
    assert run(["rebalance", "status", "--wait", *NOBODY]) == AdminExit.INTERRUPTED
    assert "the job continues in the cluster" in capsys.readouterr().err


def test_a_mistake_of_ours_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("raftkv.cli.admin.cluster.cluster_report", broken)
    monkeypatch.setattr("raftkv.cli.admin.cluster.ask", lambda _: None)
    assert run(["cluster", "status"]) == AdminExit.ERROR
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: oops" in shown
    assert "Traceback" not in shown
    monkeypatch.setenv("RAFTKV_DEBUG", "1")
    assert run(["cluster", "status"]) == AdminExit.ERROR
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == AdminExit.DONE
    script = capsys.readouterr().out
    assert "_RAFTKV_ADMIN_COMPLETE" in script
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_words_are_completed() -> None:
    environment = {
        **os.environ,
        "_RAFTKV_ADMIN_COMPLETE": "bash_complete",
        "COMP_WORDS": "raftkv-admin node re",
        "COMP_CWORD": "2",
    }
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "raftkv.cli.admin"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["plain,remove", "plain,replace"]
