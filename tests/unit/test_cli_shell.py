"""Guarantee: ``raftkv shell`` runs the commands of ``raftkv``, completes what one types and keeps what one typed."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from raftkv.cli import shell
from raftkv.cli.common import Exit
from raftkv.cli.main import run
from tests.admin_world import World, world_of


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with world_of(nodes=1, groups=1) as running:
        yield running


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the history is."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv("RAFTKV_ENDPOINTS", raising=False)
    return tmp_path / "raftkv" / "history"


def typed(monkeypatch: pytest.MonkeyPatch, text: str, *arguments: str) -> int:
    """Somebody types ``text``."""
    monkeypatch.setattr(shell, "terminal", lambda: True)
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text(text)
        return run(["shell", *arguments])


def piped(monkeypatch: pytest.MonkeyPatch, text: str, *arguments: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return run(["shell", *arguments])


def test_it_runs_commands_line_by_line(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["put a 'one two'", "get a -o json", "", "# nothing", "get none", "nonsense", "'", "incr n --by 7", "exit"]
    assert typed(monkeypatch, "".join(f"{line}\r" for line in lines), "--endpoints", world.endpoints) == Exit.DONE
    shown = capsys.readouterr()
    assert '"value": "one two"' in shown.out
    assert shown.out.splitlines()[-1] == "7"
    assert "no such key" in shown.err
    assert "No such command 'nonsense'" in shown.err
    assert "no closing quotation" in shown.err
    assert "RAFTKV_ENDPOINTS" not in os.environ


def test_the_end_of_input_ends_it_and_an_interrupt_does_not(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, "incr x\x03count\r\x04", "--endpoints", world.endpoints) == Exit.DONE
    assert capsys.readouterr().out.strip().isdecimal()


def test_help_is_that_of_the_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    typed(monkeypatch, "help\rhelp put\rshell\rquit\r")
    shown = capsys.readouterr()
    assert "delete-prefix" in shown.out
    assert "--if-absent" in shown.out
    assert "this is the shell" in shown.err


def test_what_was_typed_is_kept_for_its_owner(
    world: World, monkeypatch: pytest.MonkeyPatch, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, "put secret word\rexit\r", "--endpoints", world.endpoints, "--no-history")
    assert not state.exists()
    typed(monkeypatch, "incr kept\rexit\r", "--endpoints", world.endpoints)
    assert "+incr kept" in state.read_text().splitlines()
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    capsys.readouterr()
    # The line before: exit; the one before that: incr.
    typed(monkeypatch, "\x1b[A\x1b[A\rexit\r", "--endpoints", world.endpoints)
    assert capsys.readouterr().out == "2\n"


def test_without_a_place_for_the_history_it_works_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert typed(monkeypatch, "exit\r") == Exit.DONE
    assert "no history is kept" in capsys.readouterr().err


def test_a_script_ends_at_the_first_command_that_fails(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("--endpoints", world.endpoints)
    assert piped(monkeypatch, "incr s\nget none\nincr s\n", *at) == Exit.NOT_MET
    assert piped(monkeypatch, "incr s\nexit\nnonsense\n", *at) == Exit.DONE
    assert capsys.readouterr().out == "1\n2\n"


@pytest.mark.parametrize(
    ("text", "some", "none"),
    [
        ("", {"get", "put", "help", "exit", "delete-prefix"}, {"shell"}),
        ("delete", {"delete", "delete-prefix"}, {"get"}),
        ("help pu", {"put"}, {"get"}),
        ("put --if", {"--if-version", "--if-absent"}, {"--ttl"}),
        ("get k --consistency ", {"linearizable", "quorum", "stale"}, set()),
        ("get 'a b", set(), {"get"}),
        ("get k -o ", {"json", "table"}, set()),
    ],
)
def test_it_completes_commands_options_and_choices(text: str, some: set[str], none: set[str]) -> None:
    found = {one.text: one for one in shell.Words().get_completions(Document(text), CompleteEvent())}
    assert some <= set(found)
    assert not none & set(found)
    begun = text.rpartition(" ")[2]
    assert all(one.start_position == -len(begun) for one in found.values())


def test_it_completes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "records.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    found: list[Any] = list(shell.Words().get_completions(Document("load rec"), CompleteEvent()))
    assert [one.text for one in found] == ["ords.jsonl"]
