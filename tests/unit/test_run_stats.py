"""Guarantee: the stats of a chaos run are what its folder says, and what was not counted is not shown as nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from faults.check.history import History, Kind, Outcome
from faults.report.journal import Recorded, load
from faults.report.stats import (
    KIND_COLUMNS,
    PROBE,
    WORKLOAD,
    Counts,
    RunStats,
    Spread,
    client_kind,
    gaps_of,
    markdown,
    merged,
    stats_of,
)
from tests.chaos_runs import believable


def run(*events: dict[str, Any], **probes: int) -> Recorded:
    """A run of 20 s with these events and no operations."""
    first = {"t": 0.0, "event": "run", "scenario": "s", "seed": 1, "probes": probes}
    return Recorded(History(), sorted([first, *events, at(20, "phase", name="end")], key=lambda one: one["t"]))


def at(time: float, event: str, **fields: Any) -> dict[str, Any]:
    return {"t": float(time), "event": event, **fields}


def put(recorded: Recorded, key: str, began: float, ended: float, outcome: Outcome = Outcome.OK) -> None:
    one = recorded.history.begin("p0", Kind.PUT, key, began)
    one.outcome, one.done = outcome, outcome is Outcome.OK
    if outcome is not Outcome.OPEN:
        one.answered = ended
        one.ended = ended if outcome is not Outcome.UNKNOWN else one.ended


def fault(began: float, healed: float, recovered: float, name: str = "f1", **fields: Any) -> list[dict[str, Any]]:
    return [
        at(began, "fault", id=name, **{"kind": "kill", "how": "SIGKILL", "targets": [1], "group": 1, **fields}),
        at(began, "effect", id=name, confirmed=True, proof="it is gone"),
        at(healed, "healed", id=name),
        at(recovered, "recovered", id=name, healthy=True),
    ]


# -- operations


@pytest.mark.parametrize(
    ("client", "kind"), [("c1a", WORKLOAD), ("p0", PROBE), ("p12", PROBE), ("last", "last look"), ("px", WORKLOAD)]
)
def test_clients_are_told_apart_by_their_names(client: str, kind: str) -> None:
    assert client_kind(client) == kind


def test_operations_are_counted_by_kind_of_client_and_one_without_an_answer_is_unknown() -> None:
    recorded = run()
    for outcome in (Outcome.OK, Outcome.REFUSED, Outcome.UNKNOWN, Outcome.OPEN):
        put(recorded, "k", 1.0, 2.0, outcome)
    recorded.history.begin("c1a", Kind.GET, "k", 1.0)
    stats = stats_of(recorded)
    assert stats.operations == {PROBE: Counts(1, 1, 2), WORKLOAD: Counts(0, 0, 1)}
    assert stats.total == Counts(1, 1, 3)
    assert (stats.writes_ms, stats.gets_ms) == ([1000.0], [])


def test_a_spread_of_few_values_is_that_of_these_values() -> None:
    assert Spread.of([]) == Spread(0, None, None, None)
    assert Spread.of([3.0]) == Spread(1, 3.0, 3.0, 3.0)
    assert Spread.of(range(101)) == Spread(101, 50.0, 99.0, 100.0)


# -- faults


def test_unavailability_is_the_longest_time_between_acknowledgements_that_overlaps_the_fault_and_its_recovery() -> None:
    recorded = run(*fault(5, 8, 9), k=1, other=2)
    for began, ended in ((0.0, 0.1), (3.5, 3.6), (5.2, 7.6), (7.7, 7.8), (12.0, 12.1)):
        put(recorded, "k", began, ended)
    for time in range(1, 18):
        put(recorded, "other", time, time + 0.5)
    (found,) = stats_of(recorded).faults
    assert found.gap is not None
    # From 7.8 to 12.1: it began before the recovery. That from 0.1 to 3.6 was over before the fault.
    assert (found.gap.key, found.gap.began, found.gap.ended) == ("k", 7.8, 12.1)
    assert found.unavailability == pytest.approx(4.3)
    assert found.recovery == pytest.approx(1.0)


def test_what_is_not_acknowledged_ends_no_gap() -> None:
    recorded = run(*fault(5, 8, 9), k=1)
    put(recorded, "k", 0.0, 4.9)
    for time, outcome in ((6.0, Outcome.REFUSED), (6.5, Outcome.UNKNOWN)):
        put(recorded, "k", time, time + 0.1, outcome)
    put(recorded, "k", 7.0, 7.1)
    assert stats_of(recorded).faults[0].unavailability == pytest.approx(2.2)


def test_a_key_that_is_never_written_again_is_unavailable_as_long_as_somebody_tries() -> None:
    recorded = run(*fault(5, 8, 9), k=1)
    put(recorded, "k", 0.0, 4.0)
    put(recorded, "k", 6.0, 11.0, Outcome.UNKNOWN)
    assert stats_of(recorded).faults[0].unavailability == pytest.approx(7.0)
    put(recorded, "k", 11.0, 0.0, Outcome.OPEN)
    assert stats_of(recorded).faults[0].unavailability == pytest.approx(16.0), "to the end of the run"


def test_a_key_that_was_not_written_any_more_by_choice_is_not_unavailable() -> None:
    recorded = run(*fault(15, 16, 17), k=1)
    put(recorded, "k", 0.0, 4.0)
    assert stats_of(recorded).faults[0].gap is None


def test_gaps_are_those_of_the_probes_keys_alone() -> None:
    recorded = run(k=1)
    put(recorded, "k", 1.0, 2.0)
    put(recorded, "k", 2.0, 3.0)
    put(recorded, "mine", 1.0, 2.0)
    assert [(gap.began, gap.ended) for gap in gaps_of(recorded)["k"]] == [(1.0, 2.0), (2.0, 3.0)]
    assert list(gaps_of(recorded)) == ["k"]
    recorded.events[0]["probes"] = {}
    assert list(gaps_of(recorded)) == ["k", "mine"], "without names, those that probes write"


def test_a_fault_that_was_not_healed_or_not_recovered_from_never_recovered() -> None:
    sick = fault(8, 9, 10, "f2")
    sick[-1]["healthy"] = False
    stats = stats_of(run(*fault(1, 2, 3.5), *sick, at(11, "fault", id="f3", kind="kill", how="h", targets=[2])))
    assert [one.recovery for one in stats.faults] == [1.5, None, None]
    assert [one.confirmed for one in stats.faults] == [True, True, None]
    (kill,) = stats.kinds()
    assert (kill.injected, kill.confirmed, kill.unrecovered) == (3, 2, 2)
    assert kill.cells()[-1] == "never (2)"
    assert dict(stats.rows())["worst recovery"] == "never (2 faults)"


def test_kinds_have_median_and_worst_of_their_faults_and_the_reasons_why_one_was_skipped() -> None:
    events = [*fault(1, 2, 3, "a"), *fault(4, 5, 7, "b"), *fault(8, 9, 14, "c"), *fault(15, 16, 16, "d", kind="pause")]
    events += [at(17, "skipped", kind="clock", reason="no right"), at(18, "skipped", kind="clock", reason="no right")]
    kinds = {one.kind: one for one in stats_of(run(*events)).kinds()}
    assert list(kinds) == ["clock", "kill", "pause"]
    assert (kinds["kill"].recovery.p50, kinds["kill"].recovery.worst) == (2.0, 5.0)
    assert kinds["clock"].skipped == ("no right",)
    assert kinds["clock"].cells() == ("clock", "skipped: no right", "0", "–", "–", "–", "–")


# -- the end


def test_an_undecided_key_is_no_pass() -> None:
    def passed(undecided: int) -> bool:
        counters = at(19, "figures", **{"checked keys": 9, "undecided keys": undecided})
        return stats_of(run(counters, at(20, "verdict", passed=True, problems=[]))).passed

    assert passed(0)
    assert not passed(1)


def test_a_run_that_broke_off_has_not_passed_and_its_counters_are_not_counted() -> None:
    stats = stats_of(run(at(3, "leader", group=1, node=2, term=1), at(4, "leader", group=1, node=0, term=1)))
    rows = dict(stats.rows())
    assert stats.runs[0].passed is None
    assert not stats.passed
    assert stats.elections == 1
    for name in ("keys checked", "violations", "acknowledged writes lost", "duplicates", "slots moved"):
        assert rows[name] == "not counted"


def test_an_empty_folder_of_figures_is_no_pass() -> None:
    stats = stats_of(Recorded())
    assert not stats.passed
    assert stats.total.total == 0
    assert stats.kinds() == []
    assert not merged([]).passed


def test_the_stats_of_a_whole_run(tmp_path: Path) -> None:
    rows = dict(stats_of(load(believable(tmp_path))).rows())
    assert rows["faults"] == "4 injected, 3 confirmed effective"
    assert rows["moves"] == "5 done, 1 cancelled"
    assert rows["freeze per move"] == "p50 5.0, p99 19.0, max 19.5 ms (5)"
    assert (rows["seed"], rows["commit"], rows["length"]) == ("7", "0123abcd", "30.0 s")
    assert rows["keys checked"] == "9"
    assert rows["worst unavailability"].startswith("1.5")
    assert rows["worst recovery"] == "1.20 s"


# -- several runs


def several(folder: Path) -> RunStats:
    runs = [
        believable(folder / "a", seed=1),
        believable(folder / "b", seed=2, violated=True),
        believable(folder / "c", seed=3, ended=False),
    ]
    return merged(stats_of(load(one)) for one in runs)


def test_stats_of_several_runs_are_sums_and_spreads_over_all(tmp_path: Path) -> None:
    total = several(tmp_path)
    ones = [stats_of(load(tmp_path / name)) for name in "abc"]
    rows = dict(total.rows())
    assert total.total.total == sum(one.total.total for one in ones)
    assert Spread.of(total.writes_ms).count == sum(len(one.writes_ms) for one in ones)
    assert rows["runs"] == "1 passed, 1 failed, 1 did not end"
    assert (rows["seeds"], rows["commit"]) == ("1, 2, 3", "0123abcd")
    assert (rows["keys checked"], rows["violations"]) == ("18", "1")
    assert {one.kind: (one.injected, one.confirmed) for one in total.kinds()} == {
        "clock jump": (0, 0),
        "kill": (3, 3),
        "pause": (3, 3),
        "partition": (3, 3),
        "slow disk": (3, 0),
    }
    assert not total.passed


def test_the_table_for_documents_is_markdown_that_no_name_breaks(tmp_path: Path) -> None:
    lines = markdown(several(tmp_path)).splitlines()
    assert lines[0] == f"| {' | '.join(KIND_COLUMNS)} |"
    assert lines[1].startswith("| --- | ---: |")
    assert len(lines) == 2 + 5
    assert {line.count("|") for line in lines} == {len(KIND_COLUMNS) + 1}
    (line,) = markdown(stats_of(run(*fault(1, 2, 3, kind="a|b")))).splitlines()[2:]
    assert line.startswith("| a\\|b | 1 | 1 |")
