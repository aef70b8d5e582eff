"""Guarantee: the chaos suite's command says whether a promise was broken, shows how, and tells how to see it again."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from faults import cli
from faults.planted.catalogue import find
from faults.sim.run import run
from faults.sim.soak import RunSummary, Total, soak
from faults.sim.storm import KINDS, Storm
from faults.workloads.kinds import MIXED

ROOT = Path(__file__).resolve().parents[2]

MUTANT = "unknown told as refused"
"""Breaks a history, and soon: a write that happened is told as refused, and its value is read."""


def faults(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


def sim(seed: int) -> tuple[str, ...]:
    return "sim", "--seed", str(seed), "--mutant", MUTANT


@pytest.fixture(scope="module")
def caught() -> tuple[int, str]:
    """The first seed that the planted fault breaks, and what the command says of it."""
    for seed in range(1, 20):
        result = faults(*sim(seed))
        if result.exit_code:
            assert result.exit_code == 1, result.output
            assert isinstance(result.exception, SystemExit)
            return seed, result.output
    pytest.fail("the planted fault stays unnoticed")


# -- one seed


def test_a_seed_that_keeps_all_promises_exits_with_0_and_says_so() -> None:
    result = faults("sim", "--seed", "1")
    assert result.exit_code == 0, result.output
    assert result.output.endswith("\npassed\n")
    assert "PROBLEM" not in result.output
    assert Storm.draw(1).describe()[0] in result.output, "the story begins with the storm"
    assert "\nseed 1: " in result.output


def test_a_broken_promise_exits_with_1_and_shows_the_guilty_operation(caught: tuple[int, str]) -> None:
    seed, text = caught
    lines = text.splitlines()
    assert lines[-1] == "FAILED"
    assert any(line.startswith(f"seed {seed}: ") for line in lines)
    (first, *_) = [number for number, line in enumerate(lines) if line.startswith("history of ")]
    key = lines[first].removeprefix("history of ").removesuffix(": violation")
    story = lines[first + 1 : lines.index("", first)]
    assert all(f" {key} " in line for line in story[:-1]), "all operations shown are on that key"
    (guilty,) = [line for line in story if line.startswith("! |")]
    assert story[-1].startswith("the state before the impossible operation: "), guilty
    assert f"PROBLEM history of {key}: violation" in lines


def test_the_same_command_prints_the_same_text(caught: tuple[int, str]) -> None:
    seed, text = caught
    assert faults(*sim(seed)).output == text


def test_the_same_seed_without_the_planted_fault_passes(caught: tuple[int, str]) -> None:
    """So the fault is what was noticed, and nothing of it is left behind."""
    seed, _ = caught
    storm = find(MUTANT).storm(seed)
    assert run(storm).problems == []


def test_a_long_story_is_cut_at_its_beginning_and_told_in_full_on_request(
    caught: tuple[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seed, text = caught
    monkeypatch.setattr(cli, "_SHOWN_LINES", 10)
    short, full = faults(*sim(seed)).output, faults(*sim(seed), "--full").output
    assert full == text, "that one was short enough"
    head, *rest = short.splitlines()
    left_out = int(head.removeprefix("(").split()[0])
    assert head == f"({left_out} earlier lines are left out; --full shows them)"
    assert rest == full.splitlines()[left_out:]
    assert left_out > 10


# -- wrong use


@pytest.mark.parametrize(
    "arguments",
    [
        ("sim", "--seed", "-1"),
        ("sim", "--seed", "one"),
        ("sim", "--mutant", "no such fault"),
        ("sim", "--seed", "1", "--mutant", "no such fault"),
        ("sim", "--jobs", "0"),
        ("soak", "--jobs", "0"),
        ("soak", "--count", "0"),
        ("soak", "--first", "-1"),
        ("mutants", "--jobs", "0"),
        ("mutants", "--most", "0"),
        ("mutants", "--only", "no such fault"),
        ("nothing",),
        ("sim", "--nothing"),
    ],
    ids=" ".join,
)
def test_wrong_use_is_told_in_one_line_with_2_and_runs_nothing(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[object] = []
    for name in ("run", "soak", "search_all"):
        monkeypatch.setattr(cli, name, lambda *_: ran.append(1))
    result = faults(*arguments)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.output.splitlines()[-1].startswith("Error: ")
    assert ran == []


# -- many seeds


def summary(seed: int, *problems: str) -> RunSummary:
    return RunSummary(seed, 3, problems, 20.0, 1.5, 0.0, Counter({"operations ok": 1000, "injected kill": 2}))


def finish(capsys: pytest.CaptureFixture[str], total: Total, mutant: str = "") -> tuple[int, str]:
    """Exit code and output of a command that ran all of these."""
    code = 0
    try:
        cli._finish(total, mutant)
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, capsys.readouterr().out


def total(*summaries: RunSummary) -> Total:
    made = Total()
    for one in summaries:
        made.add(one)
    return made


def test_seeds_that_pass_are_added_up_and_exit_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = finish(capsys, total(summary(1), summary(2)))
    assert code == 0
    assert "2,000 ok" in text
    assert "2 (2 with 3 nodes)" in text
    assert "repeat" not in text


def test_each_failed_seed_is_named_with_its_problems_and_the_command_that_repeats_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the order of seeds, whichever ended first."""
    code, text = finish(
        capsys,
        total(summary(31, "history of r1: violation", "state: n1 and n2 differ"), summary(5), summary(4, "x: y")),
    )
    assert code == 1
    assert text.endswith(
        "\nseed 4 failed; repeat it with: make sim SEED=4\n"
        "  x: y\n"
        "\nseed 31 failed; repeat it with: make sim SEED=31\n"
        "  history of r1: violation\n"
        "  state: n1 and n2 differ\n"
    )


def test_the_command_that_repeats_a_seed_is_one_that_make_and_the_suite_know(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "$(PY) -m faults sim $(if $(SEED),--seed $(SEED))" in makefile
    code, text = finish(capsys, total(summary(7, "x: y")), MUTANT)
    assert code == 1
    (line,) = [line for line in text.splitlines() if "repeat it with: " in line]
    python, module, name, *arguments = shlex.split(line.split("repeat it with: ")[1])
    assert (python, module, name) == (".venv/bin/python", "-m", "faults")
    assert tuple(arguments) == sim(7)
    parsed = cli.main.commands["sim"].make_context("sim", arguments[1:]).params
    assert (parsed["seed"], parsed["mutant"]) == (7, MUTANT)


def test_all_seeds_of_a_soak_are_run_and_a_failed_one_is_told_as_it_ends(caught: tuple[int, str]) -> None:
    """The real thing, in a process of its own as always."""
    seed, text = caught
    said: list[RunSummary] = []
    found = soak([seed], 1, said.append, MUTANT)
    assert (found.runs, found.failed) == (1, said)
    assert [one.seed for one in said] == [seed]
    told = [line.removeprefix("PROBLEM ") for line in text.splitlines() if line.startswith("PROBLEM ")]
    assert list(said[0].problems) == told[: len(said[0].problems)] != [], "what the single run says"


# -- the fixed seeds


def test_the_fixed_seeds_cover_all_kinds_of_faults_workloads_clusters_and_reads() -> None:
    storms = [Storm.draw(seed) for seed in cli.FIXED]
    assert any(storm.gentle for storm in storms)
    assert {storm.nodes for storm in storms} == {3, 5}
    assert {storm.settings.reads for storm in storms} == {"lease", "quorum"}
    assert {name for storm in storms for name in storm.workloads} == {*MIXED, "increments", "transactions"}
    assert {kind for storm in storms for kind in storm.faults} == set(KINDS)
