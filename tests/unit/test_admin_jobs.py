"""Plans have names that tell them apart, and a job's report counts its own moves only."""

from __future__ import annotations

from typing import Any

import pytest

from raftkv.api.status import ClusterState, FinishedMove, Job, Move, PlannedMove, SlotStats
from raftkv.cli.admin.jobs import job_report, job_state, percentile, plan_id, plan_report, start_request
from raftkv.v1 import admin_pb2
from shards.map import Group, Node, ShardMap
from shards.moves import Phase
from shards.planner import Move as Wanted

MAP = ShardMap(
    "c", 7, 256, (Node(1, "a:1", "a:2", ""),), (Group(0, (1,)), Group(1, (1,)), Group(2, (1,))), (1,) * 192 + (2,) * 64
)


def stats(**changed: int) -> dict[int, SlotStats]:
    return {slot: SlotStats(slot, MAP.owners[slot], 2, 100, changed.get("operations", 0)) for slot in range(256)}


def finished(number: int, records: int = 0, size: int = 0, freeze: int = 0, committed: bool = True) -> FinishedMove:
    return FinishedMove(number, 2, 1, 2, committed, records, size, freeze, 0)


def job_with(**values: Any) -> Job:
    usual = {"id": 2, "pending": (), "moves": 4, "slots": 8, "rate": 0, "concurrency": 1, "started": 10_000}
    return Job(**{**usual, **values})


def state_with(job: dict[str, Any], **values: Any) -> ClusterState:
    return ClusterState(MAP, {1: 1}, True, now=20_000, job=job_with(**job), **values)


def test_a_plan_has_another_name_when_its_moves_or_the_map_are_others() -> None:
    moves = [Wanted((1, 2), 1, 2), Wanted((3,), 2, 1)]
    name = plan_id(7, moves)
    assert len(name) == 12
    assert plan_id(7, moves[::-1]) == name
    others = [plan_id(8, moves), plan_id(7, moves[:1]), plan_id(7, [Wanted((1, 2), 2, 1), moves[1]]), plan_id(7, [])]
    assert len({name, *others}) == 5


def test_a_plan_says_what_moves_and_how_even_it_gets() -> None:
    report = plan_report(MAP, [Wanted(tuple(range(64)), 1, 2)], stats(), {})
    assert report["moves"] == [
        {"source": 1, "target": 2, "slots": "0-63", "slot_count": 64, "keys": 128, "bytes": 6400}
    ]
    assert (report["slots"], report["keys"], report["bytes"], report["moved_share"]) == (64, 128, 6400, 0.25)
    assert report["balance"] == [
        {"group": 1, "before": 192, "after": 128, "ideal": 128.0},
        {"group": 2, "before": 64, "after": 128, "ideal": 128.0},
    ]
    assert report["peak_to_mean"] == {"before": 1.5, "after": 1.0}


def test_what_is_not_known_is_not_guessed() -> None:
    known = stats()
    del known[5]
    report = plan_report(MAP, [Wanted((5, 6), 1, 2), Wanted((7,), 1, 2)], known, {})
    assert [(move["keys"], move["bytes"]) for move in report["moves"]] == [(None, None), (2, 100)]
    assert (report["keys"], report["bytes"]) == (None, None)


def test_the_request_for_a_job() -> None:
    request = start_request(7, [Wanted((1, 2), 1, 2)], 3, 1000)
    assert request.start_plan == admin_pb2.StartPlan(
        epoch=7,
        moves=[admin_pb2.PlannedMove(slots=[1, 2], source=1, target=2)],
        concurrency=3,
        rate=1000,
    )


def test_no_job_ever() -> None:
    assert job_report(ClusterState(MAP, {}, True), {}) == {"job": None}


def test_a_job_under_way() -> None:
    state = state_with(
        {"done": 2, "done_slots": 4, "rate": 500, "pending": (PlannedMove((4, 5), 1, 2),)},
        moves=(Move(9, (2, 3), 1, 2, Phase.STARTED, 19_500), Move(8, (0, 1), 1, 2, Phase.COMMITTED, 0)),
        # The first is an earlier job's, the second was cancelled.
        finished=(
            finished(4, 1000, 99_999, 900),
            finished(5, size=7, committed=False),
            finished(6, 10, 1500, 30),
            finished(7, 20, 2500, 10),
        ),
    )
    report = job_report(state, stats())
    job = report["job"]
    assert (job["id"], job["state"], job["percent"]) == (2, "running", 50.0)
    assert job["moves"] == {"total": 4, "done": 2, "failed": 0, "under_way": 2, "waiting": 1}
    assert job["slots"] == {"total": 8, "done": 4, "left": 4}
    assert job["keys"] == {"moved": 30, "left": 8}
    assert job["bytes"] == {"moved": 4000, "left": 400}
    assert (job["rate"], job["rate_limit"], job["seconds"]) == (400.0, 500, 10.0)
    assert job["eta_seconds"] == 1.0
    assert job["freeze_ms"] == {"moves": 2, "p50": 10, "p99": 30, "max": 30}
    assert [(one["move"], one["phase"], one["seconds"]) for one in report["under_way"]] == [
        (9, "started", 0.5),
        (8, "committed", 20.0),
    ]


def test_time_left_is_told_by_slots_if_nothing_is_known_of_bytes() -> None:
    report = job_report(state_with({"done": 1, "done_slots": 2, "pending": (PlannedMove((1,), 1, 2),)}), {})
    assert report["job"]["bytes"] == {"moved": 0, "left": None}
    assert report["job"]["eta_seconds"] == 30.0
    assert job_report(state_with({}), {})["job"]["eta_seconds"] is None
    assert job_report(state_with({"done_slots": 2, "paused": True}), {})["job"]["eta_seconds"] is None


def test_an_ended_job_has_no_time_left_and_counts_until_its_end() -> None:
    job = job_report(state_with({"done": 4, "done_slots": 8, "ended": 15_000}), {})["job"]
    assert (job["state"], job["percent"], job["seconds"], job["eta_seconds"]) == ("done", 100.0, 5.0, None)
    assert job["bytes"]["left"] == 0


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "running"),
        ({"paused": True}, "paused"),
        ({"cancelled": True}, "cancelling"),
        ({"ended": 5}, "done"),
        ({"ended": 5, "cancelled": True}, "cancelled"),
        ({"ended": 5, "failed": 1}, "partly done"),
    ],
)
def test_states_of_a_job(values: dict[str, Any], word: str) -> None:
    assert job_state(job_with(**values)) == word


def test_percentiles_are_values_that_were_seen() -> None:
    values = list(range(1, 101))
    assert [percentile(values, percent) for percent in (50, 99, 100)] == [50, 99, 100]
    assert percentile([7], 99) == 7
    assert percentile([], 50) is None
