"""What is printed is the data, whole: no emoji or markup in it, nothing cut off, and commands that a shell takes."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click
import pytest

from raftkv.api.status import ReplicaStatus, Role
from raftkv.cli import cluster
from raftkv.cli.admin.main import run as run_admin
from raftkv.cli.cluster import _command
from raftkv.cli.common import Exit
from raftkv.cli.console import Section, console, display, make_progress
from raftkv.cli.main import run
from raftkv.cli.program import Program
from raftkv.client.admin import AdminClient
from raftkv.errors import RaftKVError, Unavailable
from raftkv.local.cluster import LocalProcesses
from raftkv.local.ports import free_ports
from raftkv.local.shape import new_shape, places_from
from raftkv.local.status import _group_status

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "[2001:db8:a:b::1]:1"
"""Rich would make an emoji of it, or a style."""


def narrow(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """A terminal of so many columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)


@pytest.mark.parametrize("columns", [0, 20, 40, 80])
def test_addresses_are_printed_whole(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if columns:
        narrow(monkeypatch, columns)
    rows = [(1, ADDRESS, "[bold]ready[/bold]"), (2, "127.0.0.1:8501", ":warning:")]
    for frames in (False, True):
        display(
            [f"cluster at {ADDRESS}", Section(f"nodes {ADDRESS}", (":a:", "address", "state"), rows)], frames=frames
        )
        shown = capsys.readouterr().out
        for text in (ADDRESS, "127.0.0.1:8501", "[bold]ready[/bold]", ":warning:", ":a:"):
            assert text in shown
        assert f"nodes {ADDRESS}\n" in shown
        assert "…" not in shown
        assert shown.isascii() or frames


def test_a_long_text_in_the_last_column_is_wrapped_at_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a node that does not answer " * 5
    parts = [Section("", ("node", "why"), [("127.0.0.1:8501", text.strip())])]
    display(parts)
    assert f"127.0.0.1:8501  {text.strip()}\n" in capsys.readouterr().out
    narrow(monkeypatch, 60)
    display(parts)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= 60


def test_the_status_of_a_local_cluster_is_not_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow(monkeypatch, 40)
    replicas = [1, 2, 3, 4, 5]
    group = {"id": 0, "leader": 2, "term": 12345, "replicas": replicas, "commit": 123456789, "applied": 123456788}
    node = {"id": 1, "pid": 4194304, "address": ADDRESS, "state": "unreachable"}
    cluster._show({"nodes": [node], "groups": [group]})
    shown = capsys.readouterr().out
    for text in (ADDRESS, "4194304", "unreachable", "leader", "applied", "1, 2, 3, 4, 5", "123456789", "123456788"):
        assert text in shown


def test_progress_shows_texts_as_they_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    with make_progress("{task.fields[note]}", auto_refresh=False) as bar:
        bar.add_task(f"load {ADDRESS}", note="[red]:b:")
        bar.console.print(ADDRESS)
    shown = capsys.readouterr().err
    assert f"load {ADDRESS}" in shown
    assert "[red]:b:" in shown
    assert console(stderr=True).is_terminal


def test_rich_prints_only_through_the_console_module() -> None:
    """Else an address becomes an emoji somewhere."""
    files = [path for folder in ("raftkv", "bench", "faults", "examples") for path in (ROOT / folder).rglob("*.py")]
    found = set()
    for path in files:
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        if any(isinstance(name, ast.Name) and name.id in ("Console", "TextColumn") for name in calls):
            found.add(path.relative_to(ROOT).as_posix())
    assert found == {"raftkv/cli/console.py"}


# Commands for people to copy


@pytest.mark.parametrize("folder", ["my data", "it's", "a;b", "$HOME"])
def test_folders_in_commands_are_quoted(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / folder
    for command in ("down", "status"):
        assert run([command, "--data-dir", str(where)]) == Exit.ERROR
        (printed,) = re.findall(r"`(.*)` makes one", capsys.readouterr().err)
        assert shlex.split(printed) == ["raftkv", "up", "--data-dir", str(where)]


def test_the_lines_after_up_can_be_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path / "my data"
    monkeypatch.setattr(LocalProcesses, "start_missing", lambda _: [])
    monkeypatch.setattr(LocalProcesses, "wait_ready", lambda *_: None)
    monkeypatch.setattr("raftkv.local.status.probe", lambda _, **__: None)
    (port,) = free_ports(1)
    assert run(["up", "--nodes", "1", "--port", str(port), "--data-dir", str(where)]) == Exit.DONE
    shown = capsys.readouterr().out
    (stop,) = re.findall(r"stop it +(.*)", shown)
    assert shlex.split(stop)[1:] == ["down", "--data-dir", str(where)]
    (again,) = re.findall(r"try +(.*)", shown)
    assert shlex.split(again)[1:] == ["put", "hello", "world", "--endpoints", f"127.0.0.1:{port}"]


def test_the_program_is_named_such_that_a_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    folder = tmp_path / "an env" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    assert shlex.split(_command()) == [str(folder / "python"), "-m", "raftkv"]
    (folder / "raftkv").touch()
    assert shlex.split(_command()) == [str(folder / "raftkv")]


def test_the_command_that_joins_a_node_is_quoted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def token(_: AdminClient) -> str:
        return "-token"

    monkeypatch.setattr(AdminClient, "add_join_token", token)
    assert run_admin(["--endpoints", "[::1]:7401", "node", "add"]) == Exit.DONE
    words = shlex.split(capsys.readouterr().out)
    assert (words[:4], words[-1]) == (["raftkv", "serve", "--join", "[::1]:7401"], "--token=-token")
    assert "'[::1]:7401'" in (run_admin(["--endpoints", "[::1]:7401", "node", "add"]), capsys.readouterr().out)[1]


# Errors


@pytest.mark.parametrize("name", ["raftkv", "raftkv-admin"])
def test_an_unexpected_error_is_one_line(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @click.group()
    def group() -> None:
        pass

    @group.command()
    def broken() -> None:
        raise ZeroDivisionError("two\nlines")

    program = Program(name, group, (RaftKVError,), lambda _: 7, str)
    monkeypatch.delenv("RAFTKV_DEBUG", raising=False)
    assert program.run(["broken"]) == Exit.ERROR
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        f"{name}: internal error, please report it: ZeroDivisionError: two lines "
        "(RAFTKV_DEBUG=1 in the environment shows the traceback)\n"
    )
    monkeypatch.setenv("RAFTKV_DEBUG", "1")
    assert program.run(["broken"]) == Exit.ERROR
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_the_log_of_a_node_keeps_the_traceback(tmp_path: Path) -> None:
    shape = new_shape(places_from(7401, 1), groups=1, replicas=1)
    (node,) = LocalProcesses.create(tmp_path, shape).nodes
    program = (
        "import sys, raftkv.node.main\n"
        "from raftkv.cli.main import main\n"
        "def broken(*_, **__): raise ZeroDivisionError('oops')\n"
        "raftkv.node.main.RaftNode = broken\n"
        "main(sys.argv[1:])\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAFTKV_DEBUG"}
    file = tmp_path / "node.log"
    for more in ([], ["--log-file", str(file)]):
        done = subprocess.run(
            [sys.executable, "-c", program, "serve", "--config", str(node.config), *more],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == Exit.ERROR
        assert "raftkv: internal error, please report it: ZeroDivisionError: oops" in done.stderr
        told = file.read_text() if more else done.stderr
        assert told.count("Traceback (most recent call last)") == 1


def test_an_error_of_raftkv_that_is_also_one_of_the_system_is_the_former(capsys: pytest.CaptureFixture[str]) -> None:
    class Both(RaftKVError, TimeoutError):
        pass

    @click.command()
    def late() -> None:
        raise Both("too late")

    group = click.Group(commands={"late": late})
    assert Program("raftkv", group, (RaftKVError,), lambda _: 7, str).run(["late"]) == 7
    assert capsys.readouterr().err == "raftkv: too late\n"


@pytest.mark.parametrize(
    "words", [["get", "k"], ["put", "k", "v"], ["delete", "k"], ["dump"], ["admin", "map", "show"]]
)
def test_a_hint_at_up_only_if_nobody_named_endpoints(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(_: object, main: Coroutine[Any, Any, None]) -> None:
        main.close()
        raise Unavailable("no node answers")

    monkeypatch.setattr(asyncio.Runner, "run", nobody)
    monkeypatch.delenv("RAFTKV_ENDPOINTS", raising=False)
    program, words, name = (run_admin, words[1:], "raftkv-admin") if words[0] == "admin" else (run, words, "raftkv")
    for given, hint in (([], True), (["--endpoints", "h:1"], False), (["-o", "json"], True)):
        if given[:1] == ["-o"] and words == ["dump"]:
            continue
        assert program([*words, *given]) == Exit.UNREACHABLE
        told = f"{name}: no --endpoints were given: is a cluster running here? `raftkv up` starts one\n" if hint else ""
        assert capsys.readouterr().err == f"{name}: no node answers\n{told}"
    if program is run_admin:
        assert program(["--endpoints", "h:1", *words]) == Exit.UNREACHABLE
        assert "raftkv up" not in capsys.readouterr().err
    monkeypatch.setenv("RAFTKV_ENDPOINTS", "h:1")
    assert program(words) == Exit.UNREACHABLE
    assert "raftkv up" not in capsys.readouterr().err


def test_no_hint_at_up_for_a_node_that_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("raftkv.local.joining._TIMEOUT", 0.3)
    monkeypatch.setenv("RAFTKV_SECURITY_SECRET", "known to all nodes")
    (port,) = free_ports(1)
    words = ["serve", "--join", "127.0.0.1:1", "--data-dir", str(tmp_path), "--address", f"127.0.0.1:{port}"]
    monkeypatch.setattr("raftkv.local.joining._take_in", _unavailable)
    assert run(words) == Exit.UNREACHABLE
    assert capsys.readouterr().err == "raftkv: no node answers\n"


def _unavailable(*_: object) -> None:
    raise Unavailable("no node answers")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "a\udcff\u65e5".encode("utf-8", "surrogateescape")), ("latin-1", b"a\\udcff\\u65e5")],
)
def test_names_that_the_locale_cannot_show_are_no_error(encoding: str, shown: bytes, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/" + "a\udcff\u65e5".encode("utf-8", "surrogateescape")
    shape = new_shape(places_from(7401, 1), groups=1, replicas=1)
    LocalProcesses.create(Path(os.fsdecode(folder)), shape)
    # Strict, as in a locale with UTF-8.
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict", "PYTHONUTF8": "1"}
    program: list[str | bytes] = [sys.executable, "-c", _SHOWS_A_FOLDER, folder]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert shown in done.stdout


_SHOWS_A_FOLDER = """
import sys
from raftkv.local.cluster import LocalProcesses
from raftkv.cli.main import main
LocalProcesses.start_missing = lambda _: []
LocalProcesses.wait_ready = lambda *_: None
main(["up", "--data-dir", sys.argv[1]])
"""


@pytest.mark.parametrize("module", ["raftkv", "raftkv.cli.main", "raftkv.cli.admin", "raftkv.cli.admin.main"])
def test_both_commands_run_as_modules(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", module, "--version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    name = "raftkv-admin" if "admin" in module else "raftkv"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{name}, version ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_raftkv(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == Exit.DONE
    script = capsys.readouterr().out
    assert "_RAFTKV_COMPLETE" in script
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=script, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("raftkv de", ["delete", "delete-prefix"]),
        ("raftkv get --cons", ["--consistency"]),
        ("raftkv get -o j", ["json"]),
    ],
)
def test_words_of_raftkv_are_completed(words: str, found: list[str]) -> None:
    asked = {"_RAFTKV_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    command = [sys.executable, "-m", "raftkv"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [f"plain,{word}" for word in found]


# A leader elsewhere


def _replica(term: int, role: Role, leader: int) -> ReplicaStatus:
    return ReplicaStatus(1, role, leader, term, term, term, term, 0, 0, (2, 3, 4))


def test_status_knows_a_leader_that_joined_from_elsewhere() -> None:
    follower = Role.FOLLOWER
    own = frozenset({1, 2, 3})
    followers = [(2, _replica(5, follower, 4)), (3, _replica(5, follower, 4))]
    found = _group_status(1, followers, own)
    assert (found["leader"], found["term"], found["replicas"]) == (4, 5, [2, 3, 4])
    # What an older term knew counts no more; nor what is said of a node that can be asked itself, and does not lead.
    assert _group_status(1, [(2, _replica(6, follower, 0)), (3, _replica(5, follower, 4))], own)["leader"] is None
    assert _group_status(1, [(2, _replica(5, follower, 3))], own)["leader"] is None
    leading = [(2, _replica(5, follower, 3)), (3, _replica(5, Role.LEADER, 3))]
    assert _group_status(1, leading, own)["leader"] == 3
