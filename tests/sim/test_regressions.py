"""Storms that once showed a fault of raftkv, kept as they were; docs/bug-ledger.md tells what each was."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from faults.check.history import Operation
from faults.sim.run import Report, run
from faults.sim.storm import Storm


def waited(report: Report, seconds: float) -> list[Operation]:
    """Calls of the probes that took longer."""
    calls = [one for one in report.history.operations if one.client.startswith("p")]
    assert len(calls) > 50
    return [one for one in calls if one.answered - one.began > seconds]


def test_a_leader_that_hears_nobody_holds_up_one_call_of_a_client_and_not_for_long() -> None:
    """An operation that was forwarded to a leader which then lost its term goes to the new one at once; and a client
    that was served elsewhere asks there from then on. Both cost a second for each attempt before."""
    gaps = []
    for seed in (5, 10, 16):
        storm = Storm.draw_gentle(seed)
        # One fault at a time: a message that the network keeps back for 2 s beside it takes the majority away for so
        # long.
        settings = replace(storm.settings, conditions=replace(storm.settings.conditions, slow=0.0))
        report = run(replace(storm, faults={"one way": 1.0}, settings=settings))
        assert report.problems == []
        assert len(waited(report, 0.9)) <= report.counts["injected one way"]
        # Two may stand at the same moment, and then none is elected until the next does.
        assert report.worst_gap < 2.0 + settings.election_max
        gaps.append(report.worst_gap)
    assert median(gaps) < 2.0


def test_two_isolated_nodes_are_not_asked_in_turns() -> None:
    """A client that has failed at one node of a minority went to the other and back, until its time was up."""
    report = run(replace(Storm.draw_gentle(13), faults={"partition": 1.0}))
    assert report.problems == []
    assert report.worst_gap < 3.0
