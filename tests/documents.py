"""Code blocks and command lines of README and docs, for the tests that parse and run them.

Blocks are fenced and name their language: ``sh`` are commands, ``console`` are commands after ``$`` with what they
print, ``text`` is neither. Names in capitals, as FILE or HOST:PORT, stand for what the reader puts in.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import dropwhile, product, takewhile
from pathlib import Path
from typing import Final

import click

from bench.cli import bench
from faults.cli import main as faults
from raftkv.cli.admin.main import cli as admin
from raftkv.cli.main import cli

ROOT: Final = Path(__file__).resolve().parents[1]
PAGES: Final = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "tests/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
LANGUAGES: Final = {"sh", "console", "python", "toml", "yaml", "json", "text", "mermaid"}

COMMANDS: Final[dict[tuple[str, ...], click.Command]] = {
    ("raftkv",): cli,
    (".venv/bin/raftkv",): cli,
    ("raftkv-admin",): admin,
    (".venv/bin/raftkv-admin",): admin,
    (".venv/bin/python", "-m", "raftkv"): cli,
    (".venv/bin/python", "-m", "bench"): bench,
    (".venv/bin/python", "-m", "faults"): faults,
}
"""How the commands of this repository are written: those of a checkout with their path, the installed ones without."""

NOT_RUN: Final = {
    "apt-get *": "changes the machine",
    "pip install *": "needs a package index",
    "docker *": "needs Docker; tests/integration/test_compose.py runs the same files without",
    "curl *": "the same",
    "python your_program.py": "the reader's own",
    "make test*": "this runs in it",
    "make quick": "the same",
    "make check": "the same as make test, in CI",
    "make format": "rewrites the checkout",
    "make chaos": "ten minutes; tests/integration/test_chaos.py makes short runs",
    ".venv/bin/python -m faults run *": "the same",
    ".venv/bin/python -m faults abuse*": "half an hour; tests/integration/test_abuse.py makes the short form",
    ".venv/bin/python docs/images/make.py *": "needs a browser, and writes pictures into the checkout",
    "make sim": "minutes; tests/sim/test_storms.py runs its seeds",
    "make soak *": "hours",
    "make mutants": "minutes; tests/sim/test_mutants.py",
    ".venv/bin/python -m bench *": "minutes to an hour; tests/integration/test_bench.py and its like make short runs",
    "raftkv serve *": "runs until it is stopped, on a machine of its own; tests/integration/test_admin_nodes.py joins",
    "raftkv context *": "changes what the user's other commands speak to; tests/unit/test_contexts.py",
    "raftkv-admin --context *": "the same",
    "raftkv-admin cert *": "a CA is made once; tests/unit/test_tls.py",
    "raftkv-admin node add 4 *": "members change once in the same way; tests/integration/test_admin_nodes.py",
    "raftkv-admin node drain *": "the same",
    "raftkv-admin node remove *": "the same",
    "raftkv-admin node replace *": "the same",
    "raftkv-admin user *": "a cluster has users for ever; tests/integration/test_users.py",
    "raftkv-admin role *": "the same",
    "raftkv context add prod 127.0.0.1:* --token *": "a token of that",
}
"""Commands that stand in blocks and are only parsed, and why."""

_HISTORY: Final = "bug-ledger.md"
"""Tells of commands as they were when a bug was found."""

_PLACEHOLDER: Final = re.compile(r"[A-Z]+([:=][A-Z]+)*(,?\.\.\.)?")


@dataclass(frozen=True)
class Block:
    """A fenced block: the ``line`` of its fence, counted from 1."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command line. ``whole``: it stands in a block, so nothing that it needs may be missing."""

    where: str
    line: str
    whole: bool
    output: tuple[str, ...] = ()
    """What the page shows of its output."""

    def __str__(self) -> str:
        return f"{self.where}: {self.line}"

    @property
    def not_run(self) -> str | None:
        """The pattern in :data:`NOT_RUN` that it fits."""
        line = shlex.join(self.program)
        return next((pattern for pattern in NOT_RUN if fnmatchcase(line, pattern)), None)

    @property
    def program(self) -> list[str]:
        """Its words, without assignments to variables before them and without what the shell does with its output."""
        words = [*takewhile(lambda word: word[0] not in "|<>&", shlex.split(self.line, comments=True))]
        return [*dropwhile(lambda word: "=" in word, words)]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of ``page``."""
    found: list[Block] = []
    inside: tuple[int, str, list[str]] | None = None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if inside is None:
            if line.startswith("```"):
                inside = (number, line.removeprefix("```"), [])
        elif line == "```":
            found.append(Block(page, inside[0], inside[1], "".join(f"{one}\n" for one in inside[2])))
            inside = None
        else:
            inside[2].append(line)
    assert inside is None, f"{page}: a block is not closed"
    return found


def prose(page: Path) -> str:
    """``page`` without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def block_commands(block: Block) -> list[Command]:
    """The commands of a block of shell, each part of ``a && b`` for itself."""
    if block.language == "console":
        shown = [part.split("\n") for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]]
        lines = [(first, tuple(rest)) for first, *rest in shown]
    elif block.language == "sh":
        lines = [(line, ()) for line in block.text.replace("\\\n", "").splitlines()]
    else:
        lines = []
    parts = [(part.strip(), output) for line, output in lines for part in line.split(" && ")]
    return [Command(str(block), part, True, output) for part, output in parts if part and part[0] != "#"]


def commands() -> list[Command]:
    """Every command line that the pages name, in blocks or in their text; of ``a|b``, each."""
    found: list[Command] = []
    for page in PAGES:
        for block in blocks(page):
            found += block_commands(block)
        for span in spans(page):
            if (words := _words(span)) and _is_command(words):
                each = product(*(word.split("|") if len(word) > 1 else [word] for word in words))
                found += [Command(str(page.relative_to(ROOT)), shlex.join(one), False) for one in each]
    return found


def spans(page: Path) -> list[str]:
    """What stands between backticks in the text of ``page``."""
    return [] if page.name == _HISTORY else re.findall(r"`([^`]+)`", prose(page))


def options(command: click.Command | None = None) -> set[str]:
    """Every option of ``command`` and those below it; of all commands without one."""
    if command is None:
        return set().union(*map(options, COMMANDS.values()))
    context = click.Context(command)
    found = {name for parameter in command.get_params(context) for name in parameter.opts + parameter.secondary_opts}
    if isinstance(command, click.Group):
        found |= set().union(*(options(command.get_command(context, name)) for name in command.list_commands(context)))
    return found


def _words(span: str) -> list[str]:
    try:
        return [] if "\\" in span else shlex.split(span)
    except ValueError:
        return []


def _is_command(words: list[str]) -> bool:
    if words[0] in ("raftkv", "raftkv-admin", "make", "python", "pytest", "pip") or words[0].startswith(".venv/"):
        return len(words) > 1
    # In the text, `slot move` is written for `raftkv-admin slot move`.
    noun = admin.get_command(click.Context(admin), words[0])
    return isinstance(noun, click.Group) and len(words) > 1 and re.fullmatch(r"[a-z|-]+", words[1]) is not None


def mistake(command: Command) -> str | None:
    """What would be refused in ``command`` before it is run; None if nothing."""
    words = command.program
    if words[0] == "make":
        return _mistake_of_make(words[1:])
    if words[0] == ".venv/bin/pytest":
        return next((f"no {word}" for word in words[1:] if not (ROOT / word.split("::")[0]).exists()), None)
    for program, parser in COMMANDS.items():
        if tuple(words[: len(program)]) == program:
            return _mistake_of_click(parser, words[len(program) :], command.whole)
    if not command.whole and words[0] in admin.list_commands(click.Context(admin)):
        return _mistake_of_click(admin, words, False)
    return None if command.not_run else f"nobody knows {words[0]}"


def _mistake_of_make(words: list[str]) -> str | None:
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    variables = {"PYTHON", *re.findall(r"^([A-Z]+) \?=", text, re.MULTILINE)}
    for word in words:
        name, is_variable, _ = word.partition("=")
        if name not in (variables if is_variable else targets):
            return f"make knows no {name}"
    return None


def _mistake_of_click(command: click.Command, words: list[str], whole: bool) -> str | None:
    """Parse ``words`` as click does, but run nothing, and take every placeholder."""
    context = click.Context(command, info_name=command.name)
    try:
        values, rest, _ = command.make_parser(context).parse_args(list(words))
        for parameter in command.get_params(context):
            given = list(_texts(values.get(parameter.name or "")))
            if whole and parameter.required and not given and "--help" not in words:
                return f"{parameter.human_readable_name} is missing"
            # Files need not exist.
            if not isinstance(parameter.type, (click.Path, click.File)):
                for text in given:
                    if not _stands_for_something(text):
                        parameter.type.convert(text, parameter, context)
    except click.BadOptionUsage as error:
        return error.format_message() if whole else None
    except click.ClickException as error:
        return error.format_message()
    if isinstance(command, click.Group):
        if not rest:
            return "no command" if whole and "--help" not in words else None
        if _stands_for_something(rest[0]):
            return None
        inner = command.get_command(context, rest[0])
        return f"no command {rest[0]}" if inner is None else _mistake_of_click(inner, rest[1:], whole)
    return f"too much: {rest}" if rest else None


def _texts(value: object) -> Iterator[str]:
    """What was given as values: nothing of flags, nor of what was left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _texts(one)


def _stands_for_something(word: str) -> bool:
    return _PLACEHOLDER.fullmatch(word) is not None
