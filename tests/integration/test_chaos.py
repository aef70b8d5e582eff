"""The chaos suite on real processes: short runs that pass, planted faults that are caught, and what it must refuse."""

from __future__ import annotations

from functools import partial
from itertools import count
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from faults import cli
from faults.check.history import Outcome
from faults.disks import NoSickDisks, library
from faults.process import command, run
from faults.process.planted import OF_NODES
from faults.process.run import ChaosPlan
from faults.process.scenarios import SCENARIOS, ChaosScenario
from faults.report.journal import load
from faults.report.stats import stats_of
from tests import needs
from tests.waiting import PATIENCE

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def toxiproxy() -> str:
    return needs.toxiproxy()


def faults(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(one) for one in arguments])


PATIENT = partial(ChaosPlan, patience=PATIENCE, proof=PATIENCE, late=PATIENCE)
"""Nothing has to happen soon: whoever else works on this machine breaks no promise."""

# -- short runs

SHORT = (
    (
        ChaosScenario(
            "short",
            "deaths, pauses, cuts and sick links while slots move",
            ("kill leader", "isolate with client", "one way", "lose answers", "latency"),
            workloads=("watches", "registers", "transactions", "scans", "ttl"),
            operator=2.0,
        ),
        18.0,
    ),
    (ChaosScenario("lost nodes", "a node is replaced, all die", ("replace node", "kill all", "slow close")), 12.0),
    (
        ChaosScenario(
            "short abuse",
            "floods, idle connections, answers that are not read",
            ("flood", "idle sockets", "large answers"),
        ),
        15.0,
    ),
    (ChaosScenario("short bank", "transfers while disks are full", ("full disk", "split"), workloads=("bank",)), 10.0),
)
"""And for how many seconds faults come."""

SECURE = ("lost nodes", "short abuse")
"""Those that run with TLS: nodes join and die, strangers and clients flood them."""


@pytest.mark.slow
@pytest.mark.usefixtures("toxiproxy")
@pytest.mark.parametrize(("scenario", "seconds"), SHORT, ids=lambda one: getattr(one, "name", ""))
def test_a_short_run_keeps_every_promise_and_sees_every_fault(
    scenario: ChaosScenario, seconds: float, tmp_path: Path
) -> None:
    try:
        library()
    except NoSickDisks as problem:
        needs.need(False, str(problem))
    assert run.run(PATIENT(scenario, tmp_path, seconds=seconds, secure=scenario.name in SECURE)).problems == []

    stats = stats_of(load(tmp_path))
    assert stats.passed
    assert stats.kinds()
    assert {kind.kind for kind in stats.kinds()} <= set(scenario.faults)
    for kind in stats.kinds():
        assert kind.injected == kind.confirmed >= 1, kind
        assert kind.unrecovered == 0, kind
        assert kind.unavailability.worst is not None, "probes measured it"
    assert (stats.violations, stats.lost, stats.duplicates, stats.undecided) == (0, 0, 0, 0)
    assert stats.checked
    assert stats.total.ok
    again = faults("check", tmp_path)
    assert (again.exit_code, "violation" in again.output.lower()) == (0, True), again.output


# -- planted faults

CAUGHT = {
    "stale reads": ("isolate with client", ("counter",)),
    "no dedupe": ("lose answers", ("unique-set",)),
    "acknowledge before majority": ("isolate with client", ("unique-set",)),
}
"""By which fault of the scenario "clients", and which of its workloads."""


@pytest.mark.slow
@pytest.mark.usefixtures("toxiproxy")
@pytest.mark.parametrize("planted", OF_NODES)
def test_a_planted_fault_is_caught_by_the_history(planted: str, tmp_path: Path) -> None:
    """By the first run in which it shows: when it does depends on who gets to run when."""
    fault, workloads = CAUGHT[planted]
    assert fault in SCENARIOS["clients"].faults
    assert set(workloads) <= set(SCENARIOS["clients"].workloads)
    scenario = ChaosScenario("planted", planted, (fault,), workloads)
    for seed in count(1):
        folder = tmp_path / str(seed)
        passed = run.run(ChaosPlan(scenario, folder, seed, seconds=8.0, patience=5.0, planted=planted)).passed
        found = load(folder)
        if stats_of(found).violations:
            break
    assert not passed
    (about,) = found.of("run")
    assert about["planted"] == planted
    stats = stats_of(found)
    assert stats.violations
    again = faults("check", folder)
    assert again.exit_code == 1
    assert "!" in again.output, "an operation that could not be placed"


# -- the command


def test_what_there_is_to_run_is_listed() -> None:
    listed = faults("list")
    assert listed.exit_code == 0
    for name in SCENARIOS:
        assert name in listed.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name a --scenario, or --all"),
        (("--all", "--scenario", "kills"), "either --all or --scenario"),
        (("--scenario", "earthquake"), "there is no scenario earthquake; there are simple, kills"),
        (("--scenario", "kills", "--nodes", "2"), "Invalid value for '--nodes'"),
        (("--scenario", "kills", "--time", "nan"), "Invalid value for '--time'"),
        (("--scenario", "kills", "--planted", "gremlins"), "Invalid value for '--planted'"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    refused = faults("run", "--out", tmp_path / "out", *arguments)
    assert refused.exit_code == command.NOT_RUN
    assert words in refused.output
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    refused = faults("run", "--scenario", "simple", "--out", tmp_path)
    assert refused.exit_code == command.NOT_RUN
    assert "is not empty" in refused.output
    assert [one.name for one in tmp_path.iterdir()] == ["mine"]


def test_without_toxiproxy_nothing_is_run_and_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "find_server", lambda: None)
    refused = faults("run", "--scenario", "simple", "--out", tmp_path / "out")
    assert refused.exit_code == command.NOT_RUN
    assert "make toxiproxy" in refused.output
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("toxiproxy")
def test_the_simplest_scenario_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "ChaosPlan", PATIENT)
    done = faults("run", "--scenario", "simple", "--time", "3", "--nodes", "3", "--out", tmp_path / "out")
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "passed"), done.output
    assert (tmp_path / "out" / "report.html").exists()
    assert list((tmp_path / "out").rglob("node.log"))
    assert not list((tmp_path / "out").rglob("data"))
    found = load(tmp_path / "out")
    assert found.history.count(Outcome.OK)
