"""Guarantee: what the documentation says in tables, examples and names is what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
from pydantic import BaseModel

import raftkv
from faults import journal
from faults.history import Kind as Asked
from faults.history import Operation, Outcome
from raftkv import limits
from raftkv.cli.common import Exit
from raftkv.cli.main import cli
from raftkv.errors import OUTCOMES, Code, NotApplied, OutcomeUnknown
from raftkv.node.config import ClusterSection, NodeConfig, NodeSection, PeerSection, RaftSection, parse_config
from raftkv.raft.messages import Type
from raftkv.storage import wal_format
from raftkv.store import Kind
from tests.chaos_runs import believable

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "tests" / "README.md", *sorted(DOCS.rglob("*.md"))]


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
    builtin = (TimeoutError, ConnectionError, ValueError, RuntimeError)
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
        ("type", {kind.name: kind.value for kind in Type}),
        ("step", {kind.name: kind.value for kind in Kind if 30 <= kind < 40 or kind is Kind.CHECK}),
        (
            "record",
            {
                name: getattr(wal_format, name)
                for name in ("GROUP", "HARD_STATE", "ENTRY", "TRUNCATE", "SNAPSHOT", "OPENING", "DROP")
            },
        ),
    ],
)
def test_the_numbers_of_messages_and_records_are_those_of_the_code(first: str, numbers: dict[str, int]) -> None:
    assert {row[0]: int(row[1]) for row in table(DOCS / "protocol.md", first)} == numbers


def defaults(name: str, section: type[BaseModel]) -> dict[str, Any]:
    return {f"{name}.{key}": field for key, field in section.model_fields.items()}


def test_the_table_of_the_configuration_names_every_key_and_its_default() -> None:
    fields = {
        **defaults("cluster", ClusterSection),
        **defaults("node", NodeSection),
        **defaults("raft", RaftSection),
        "dial": NodeConfig.model_fields["dial"],
        **defaults("nodes", PeerSection),
    }
    rows = {row[0]: row[2].strip("`") for row in table(DOCS / "operations.md", "key")}
    assert list(rows) == list(fields)
    for key, default in rows.items():
        if not fields[key].is_required() and fields[key].default is not None:
            assert default == str(fields[key].default), key


def test_the_exit_codes_are_those_of_the_code() -> None:
    for page, first in ((ROOT / "README.md", "exit code"), (DOCS / "operations.md", "code")):
        assert {int(row[0]) for row in table(page, first)} == {int(code) for code in Exit}


def test_the_readmes_example_of_a_configuration_is_valid() -> None:
    text = (ROOT / "README.md").read_text()
    block = text[text.index("    [cluster]\n") :]
    lines = block[: block.index("\n\nAn unknown key")].splitlines()
    raw = tomllib.loads("\n".join(line.removeprefix("    ") for line in lines))
    for number in (2, 3):
        raw["nodes"].append({"id": number, "address": f"10.0.0.{number}:1", "peer_address": f"10.0.0.{number}:2"})
    config = parse_config(raw, "README.md")
    assert config.raft == RaftSection()
    assert config.node.data_dir == "data"


def test_the_readme_names_every_command() -> None:
    named = " ".join(row[0] for row in table(ROOT / "README.md", "command"))
    assert [name for name in cli.list_commands(click.Context(cli)) if not re.search(rf"\b{name}\b", named)] == []


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
    one = Operation(1, "c1a", Asked.PUT, "k", 1.0, "v", 0, "e", 2.0, True, 1.5, 1.5, Outcome.OK, True, "f", 3)
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
