"""Guarantee: what the documentation says in tables, examples and names is what the code does."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import click
import pytest
import yaml
from msgspec import NODEFAULT
from msgspec.structs import FieldInfo, fields

import raftkv
from bench.cli import bench
from faults.check.history import Kind as Asked
from faults.check.history import Operation, Outcome
from faults.cli import main as faults
from faults.report import journal
from raftkv import limits
from raftkv.cli.admin.main import cli as admin
from raftkv.cli.common import Exit
from raftkv.cli.main import cli
from raftkv.commands.group import Check
from raftkv.commands.registry import COMMANDS
from raftkv.errors import OUTCOMES, Code, NotApplied, OutcomeUnknown
from raftkv.node.config import (
    ClusterSection,
    NodeConfig,
    NodeSection,
    PeerSection,
    RaftSection,
    SecuritySection,
    parse_config,
)
from raftkv.node.sections import Section
from raftkv.peer.hello import Reason
from raftkv.raft.messages import Type
from raftkv.storage import wal_format
from tests.chaos_runs import believable
from tests.documents import (
    LANGUAGES,
    NOT_RUN,
    PAGES,
    ROOT,
    Block,
    Command,
    blocks,
    commands,
    mistake,
    options,
    prose,
    spans,
)

DOCS = ROOT / "docs"
BLOCKS = [block for page in PAGES for block in blocks(page)]

OTHER_OPTIONS = {"-k", "--preload"}
"""Of programs that are not ours: pytest and gunicorn."""


def table(page: Path, first: str) -> list[list[str]]:
    """The rows of the table of ``page`` whose heading begins with the cell ``first``, cells without backticks."""
    lines = page.read_text().splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def yes(flag: bool) -> str:
    return "yes" if flag else "no"


def test_the_table_of_errors_is_that_of_the_code() -> None:
    rows = {row[0]: row[1:6] for row in table(DOCS / "protocol.md", "code")}
    assert rows == {
        code.name: [str(int(code)), yes(out.definite), yes(out.retry), out.grpc_status, out.error.__name__]
        for code, out in OUTCOMES.items()
    }
    assert set(Code) - set(OUTCOMES) == {Code.OK}


def test_the_table_of_built_in_errors_is_that_of_the_code() -> None:
    builtin = (TimeoutError, ConnectionError, ValueError, RuntimeError, OverflowError, PermissionError)
    rows = {
        name: set(re.findall(r"\w+", bases))
        for names, bases, _ in table(DOCS / "protocol.md", "exception")
        for name in re.findall(r"\w+", names)
    }
    kinds = {name: kind for name in raftkv.__all__ if isinstance(kind := getattr(raftkv, name), type)}
    assert rows == {
        name: bases
        for name, kind in kinds.items()
        if issubclass(kind, raftkv.RaftKVError)
        if (bases := {base.__name__ for base in builtin if issubclass(kind, base)})
    }


def test_the_readme_says_truly_which_errors_are_definite() -> None:
    named = set()
    for names, effect, _ in table(ROOT / "README.md", "error"):
        base = NotApplied if effect == "no" else OutcomeUnknown
        for name in re.findall(r"\w+", names):
            assert issubclass(getattr(raftkv, name), base)
            named.add(name)
    raised = {outcome.error.__name__ for outcome in OUTCOMES.values()}
    assert raised <= named


@pytest.mark.parametrize(
    ("first", "numbers"),
    [
        ("reason", {reason.name: reason.value for reason in Reason}),
        ("type", {kind.name: kind.value for kind in Type}),
        (
            "step",
            {kind.name.upper(): number for number, kind in COMMANDS.items() if 30 <= number < 40 or kind is Check},
        ),
        (
            "record",
            {
                name: getattr(wal_format, name)
                for name in ("GROUP", "HARD_STATE", "ENTRY", "TRUNCATE", "SNAPSHOT", "OPENING", "DROP", "LOST")
            },
        ),
    ],
)
def test_the_numbers_of_messages_and_records_are_those_of_the_code(first: str, numbers: dict[str, int]) -> None:
    assert {row[0]: int(row[1]) for row in table(DOCS / "protocol.md", first)} == numbers


def keys(name: str, section: type[Section]) -> dict[str, FieldInfo]:
    return {f"{name}.{field.name}": field for field in fields(section)}


def test_the_table_of_the_configuration_names_every_key_and_its_default() -> None:
    known = {
        **keys("cluster", ClusterSection),
        **keys("node", NodeSection),
        **keys("raft", RaftSection),
        **keys("security", SecuritySection),
        "dial": next(field for field in fields(NodeConfig) if field.name == "dial"),
        **keys("nodes", PeerSection),
    }
    rows = {row[0]: row[2].strip("`") for row in table(DOCS / "operations.md", "key")}
    assert list(rows) == list(known)
    for key, text in rows.items():
        field = known[key]
        default = None if field.required else field.default
        if default is NODEFAULT:
            default = field.default_factory()
        if default is not None:
            assert text == str(default), key


def test_the_exit_codes_are_those_of_the_code() -> None:
    for page, first in ((ROOT / "README.md", "exit code"), (DOCS / "operations.md", "code")):
        assert {int(row[0]) for row in table(page, first)} == {int(code) for code in Exit}


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "toml"], ids=str)
def test_examples_of_configurations_are_taken_as_they_are(block: Block) -> None:
    config = parse_config(tomllib.loads(block.text), str(block))
    assert config.raft == RaftSection()
    assert config.node.data_dir == "data"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in ("json", "yaml")], ids=str)
def test_data_in_blocks_can_be_read(block: Block) -> None:
    for line in block.text.splitlines():
        assert isinstance(json.loads(line) if block.language == "json" else yaml.safe_load(line), dict)


def test_blocks_are_fenced_and_say_what_they_are() -> None:
    assert [str(block) for block in BLOCKS if block.language not in LANGUAGES] == []
    assert {str(page): re.findall(r"\n\n    .+", prose(page)) for page in PAGES} == {str(page): [] for page in PAGES}


def test_every_command_line_would_be_taken() -> None:
    mistakes = {str(command): mistake(command) for command in commands()}
    assert len(mistakes) > 150
    assert {command: wrong for command, wrong in mistakes.items() if wrong} == {}


@pytest.mark.parametrize(
    "line",
    [
        "raftkv get",
        "raftkv get k --nonsense",
        "raftkv get a b",
        "raftkv-admin slot move 0-7 --wait",
        "raftkv-admin slots",
        "raftkv-admin slot stats --by colour",
        "raftkv-admin group add --count few",
        "python -m bench load",
        "pytest tests/unit",
        ".venv/bin/pytest tests/none.py",
        ".venv/bin/python -m bench run --rounds 3",
        ".venv/bin/python -m faults run --time",
        "make love",
        "make sim SEEDS=1",
    ],
)
def test_a_command_line_that_would_be_refused_is_noticed(line: str) -> None:
    assert mistake(Command("here", line, True)) is not None


@pytest.mark.parametrize("group", [bench, faults], ids=lambda group: group.name)
def test_the_help_of_each_tool_shows_an_example_that_would_be_taken(group: click.Group) -> None:
    for name, command in group.commands.items():
        example = re.search(r"Example:\n +(.+)", command.help or "")
        assert example is not None, name
        assert mistake(Command(name, f".venv/bin/{example[1]}", True)) is None, name


def test_every_option_that_is_named_exists() -> None:
    known = options()
    named = {span.split()[0] for page in PAGES for span in spans(page) if re.match(r"--?[a-z]", span)}
    assert len(named) > 20
    assert named - known - OTHER_OPTIONS == set()


def test_what_is_not_run_stands_in_the_pages() -> None:
    assert {command.not_run for command in commands()} - {None} == set(NOT_RUN)


def test_the_readme_names_every_command() -> None:
    named = " ".join(row[0] for row in table(ROOT / "README.md", "command"))
    assert [name for name in cli.list_commands(click.Context(cli)) if not re.search(rf"\b{name}\b", named)] == []
    text = (ROOT / "README.md").read_text()
    named = " ".join(text[text.index("`raftkv-admin` administers") :].split("\n\n")[0].split())
    context = click.Context(admin)
    for noun in admin.list_commands(context):
        command = admin.get_command(context, noun)
        verbs = command.list_commands(context) if isinstance(command, click.Group) else []
        told = re.search(rf"`{noun} ([a-z|]+)`", named)
        assert told is not None, noun
        assert not verbs or sorted(told[1].split("|")) == sorted(verbs), noun


def test_the_readmes_limits_are_those_of_the_code() -> None:
    rows = {row[0]: row[1] for row in table(ROOT / "README.md", "what")}
    assert rows["key"] == f"1 byte to {limits.MAX_KEY_BYTES // 1024} KiB"
    assert rows["value"] == f"{limits.MAX_VALUE_BYTES // 1024**2} MiB"
    assert rows["one batch of a client"] == f"{limits.MAX_BATCH_BYTES // 1024**2} MiB"
    assert rows["time to live"] == f"{limits.MAX_TTL // (365 * 24 * 3600)} years"
    assert rows["time-out of one call"] == f"{limits.MAX_TIMEOUT // 60} minutes"


def test_the_lines_of_a_history_are_documented() -> None:
    """Every field that a call and its answer may have, and what each answer means."""
    page = DOCS / "chaos.md"
    one = Operation(1, "c1a", Asked.PUT, "k", 1.0, "v", 0, "e", 2.0, True, 1.5, 1.5, Outcome.OK, True, "f", 3, "{}")
    shared = {"t", "type", "op", "client"}
    asked = {row[0] for row in table(page, "field")}
    assert asked == set(journal.invocation(one)) - {"t", "type"}
    text = page.read_text()
    told = set(re.findall(r"^\| `(\w+)` \|", text[text.index("| field | of which") :].split("\n\n")[0], re.MULTILINE))
    assert told == set(journal.completion(one)) - shared - {"definite"}
    answers = {}
    for one.outcome in (Outcome.OK, Outcome.REFUSED, Outcome.UNKNOWN):
        line = journal.completion(one)
        answers[line["type"]] = str(line["definite"]).lower()
    assert {row[0]: row[1] for row in table(page, "`type`")} == answers


def test_the_example_of_a_history_is_one(tmp_path: Path) -> None:
    text = (DOCS / "chaos.md").read_text()
    (tmp_path / "history.jsonl").write_text(text.split("```json\n")[1].split("```")[0])
    put, cas, get = journal.load_history(tmp_path / "history.jsonl").operations
    assert (put.outcome, cas.outcome, get.outcome) == (Outcome.OK, Outcome.UNKNOWN, Outcome.OK)
    assert (put.version, cas.expected, get.found) == (7, "4", "5")


def test_the_events_of_a_run_are_documented(tmp_path: Path) -> None:
    rows = {row[0]: row[1] for row in table(DOCS / "chaos.md", "`event`")}
    events = journal.load(believable(tmp_path)).events
    assert {one["event"] for one in events} == set(rows)
    for one in events:
        said = re.split(r"[`,:()] *", rows[one["event"]])
        assert [name for name in one if name not in ("t", "event", *said)] == []


def test_the_glossary_has_the_words_that_the_readme_promises() -> None:
    promised = re.search(r"glossary\.md\) \| (.+) and other words", (ROOT / "README.md").read_text())
    assert promised is not None
    explained = ", ".join(row[0] for row in table(DOCS / "glossary.md", "word")).split(", ")
    assert set(promised[1].split(", ")) - set(explained) == set()


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of ``page``."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_headings_that_are_linked_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text())
    assert [anchor for target, anchor in links if anchor not in anchors(page.parent / target if target else page)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    missing = []
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        if not (page.parent / target).exists():
            missing.append(target)
    for name in re.findall(r"`((?:[a-z_0-9]+/)*[a-z_0-9]+\.py)`", text):
        places = [page.parent / name, ROOT / name, ROOT / "raftkv" / name, *ROOT.glob(f"*/*/{name}")]
        if not any(place.exists() for place in places):
            missing.append(name)
    assert missing == []
