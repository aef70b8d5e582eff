"""What cannot be a duration or a path is wrong usage; both commands show defaults, variables and examples alike."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from raftkv.cli.admin.main import cli as admin_cli
from raftkv.cli.admin.main import run as run_admin
from raftkv.cli.common import Exit
from raftkv.cli.main import cli, run
from raftkv.cli.parameters import Duration, duration_text, parse_duration

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000),
        (" 5 ", 5),
        ("500ms", 0.5),
        ("30s", 30),
        ("5m", 300),
        ("1h", 3600),
        ("7d", 7 * 86400),
        ("1h30m", 5400),
        ("1.5h", 5400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(duration_text(seconds)) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nan",
        "inf",
        "-1",
        "-1h",
        "+1",
        "1h30",
        "h",
        "1x",
        "1 h",
        "1_000",
        "0x10",
        "1H",
        "5min",
        "1,5",
        "٣s",
        "1h-5m",
    ],
)
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: write seconds, or 500ms"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "1e400", "9" * 400 + "d", "1h30", "0", "0s", ""])
@pytest.mark.parametrize(
    "command",
    [
        ["put", "k", "v", "--ttl"],
        ["put", "k", "v", "--timeout"],
        ["get", "k", "--timeout"],
        ["load", "f.csv", "--timeout"],
        ["up", "--timeout"],
        ["admin", "cluster", "status", "--timeout"],
        ["admin", "--timeout"],
        ["admin", "rebalance", "status", "--wait-timeout"],
        ["admin", "check", "consistency", "--wait-timeout"],
    ],
    ids=" ".join,
)
def test_durations_that_cannot_be_are_wrong_usage(
    command: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program, words = (run_admin, command[1:]) if command[0] == "admin" else (run, command)
    assert program([*words, text]) == Exit.USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"Error: Invalid value for '{words[-1]}'" in shown.err


def test_limits_are_told_as_durations(capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["put", "k", "v", "--ttl", "3651d"], "at most 3650d"),
        (["get", "k", "--timeout", "11m"], "at most 10m"),
        (["get", "k", "--timeout", "1e-5"], "at least 1ms"),
    ):
        assert run(words) == Exit.USAGE
        assert told in capsys.readouterr().err
    assert Duration(10, least=0).convert("0", None, None) == 0


@pytest.mark.parametrize(
    "words",
    [
        ["up", "--data-dir", ""],
        ["down", "--data-dir", ""],
        ["status", "--data-dir="],
        ["dump", "--out", ""],
        ["load", ""],
        ["serve", "--config", ""],
        ["serve", "--join", "127.0.0.1:1", "--data-dir", ""],
        ["health", "--config", ""],
        ["admin", "backup", "create", ""],
        ["admin", "backup", "verify", ""],
        ["admin", "backup", "restore", "", "--yes"],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_wrong_usage_not_the_current_folder(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (run_admin(words[1:]) if words[0] == "admin" else run(words)) == Exit.USAGE
    assert "the path is empty" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# Help


def commands(group: click.Group, name: str) -> Iterator[tuple[click.Context, click.Command]]:
    """Every command of a program."""
    context = click.Context(group, info_name=name)
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} {word}")
        else:
            yield click.Context(command, info_name=f"{name} {word}"), command


COMMANDS = [*commands(cli, "raftkv"), *commands(admin_cli, "raftkv-admin")]
EACH = pytest.mark.parametrize(
    ("context", "command"), COMMANDS, ids=[str(context.info_name) for context, _ in COMMANDS]
)


@EACH
def test_help_shows_an_example_that_the_command_takes(context: click.Context, command: click.Command) -> None:
    text = command.get_help(context)
    (line,) = re.findall(r"Example:\n +(.*)", text)
    line = re.sub(r'^eval "\$\((.*)\)".*', r"\1", line)
    words = shlex.split(line)
    name = str(context.info_name).split()
    assert words[: len(name)] == name
    command.make_context(str(context.info_name), words[len(name) :])


@EACH
def test_defaults_and_variables_are_printed_one_way(context: click.Context, command: click.Command) -> None:
    for option in command.params:
        if isinstance(option, click.Option):
            assert "default" not in (option.help or "").lower(), option.name
            assert "env" not in (option.help or "")
            assert option.envvar is None or option.show_envvar
            if isinstance(option.default, str | int | float | Path) and option.default is not False:
                assert option.show_default, option.name
    text = re.sub(r"\s+", " ", command.get_help(context))
    if "--endpoints" in text:
        assert "[env var: RAFTKV_ENDPOINTS; default: 127.0.0.1:74" in text
    if "--output" in text:
        assert "--output [table|json] Output format. [default: table]" in text


def test_only_commands_that_prompt_have_yes_and_the_documentation_names_them() -> None:
    prompting = {
        str(context.info_name).removeprefix("raftkv-admin ")
        for context, command in COMMANDS
        if any(option.name == "yes" for option in command.params)
    }
    calls = 0
    for path in (ROOT / "raftkv" / "cli" / "admin").glob("*.py"):
        calls += len(re.findall(r"^ +confirm\(", path.read_text(), re.MULTILINE))
    assert calls == len(prompting)
    page = (ROOT / "docs" / "admin.md").read_text()
    told = page[page.index("These commands prompt") :].split(".\n")[0]
    assert set(re.findall(r"`(\w+\s\w+)`", told)) == prompting


def test_a_command_that_contacts_no_cluster_has_no_endpoints(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--endpoints", "--timeout", "--yes"):
        assert run_admin(["backup", "verify", "somewhere", option, "1"]) == Exit.USAGE
        assert f"No such option '{option}'" in capsys.readouterr().err
