"""Plans have names that tell them apart, and a job's report counts its own moves only."""

from __future__ import annotations

from typing import Any

import pytest

from raftkv.cli.admin.jobs import job_report, job_state, percentile, plan_id, plan_report, start_request
from raftkv.client.admin import ClusterState
from raftkv.v1 import admin_pb2
from shards.map import Group, Node, ShardMap
from shards.planner import Move

MAP = ShardMap(
    "c", 7, 256, (Node(1, "a:1", "a:2", ""),), (Group(0, (1,)), Group(1, (1,)), Group(2, (1,))), (1,) * 192 + (2,) * 64
)


def stats(**changed: int) -> dict[int, admin_pb2.SlotStats]:
    return {
        slot: admin_pb2.SlotStats(slot=slot, group=MAP.owners[slot], keys=2, bytes=100, **changed)
        for slot in range(256)
    }


def finished(number: int, committed: bool = True, **values: int) -> admin_pb2.FinishedMove:
    return admin_pb2.FinishedMove(id=number, slots=2, source=1, target=2, committed=committed, **values)


def state_with(job: dict[str, Any], **values: Any) -> ClusterState:
    usual = {"id": 2, "moves": 4, "slots": 8, "started_ms": 10_000, "concurrency": 1}
    message = admin_pb2.GetStateResponse(job=admin_pb2.Job(**{**usual, **job}), now_ms=20_000, **values)
    return ClusterState(MAP, {1: 1}, True, message)


def test_a_plan_has_another_name_when_its_moves_or_the_map_are_others() -> None:
    moves = [Move((1, 2), 1, 2), Move((3,), 2, 1)]
    name = plan_id(7, moves)
    assert len(name) == 12
    assert plan_id(7, moves[::-1]) == name
    others = [plan_id(8, moves), plan_id(7, moves[:1]), plan_id(7, [Move((1, 2), 2, 1), moves[1]]), plan_id(7, [])]
    assert len({name, *others}) == 5


def test_a_plan_says_what_moves_and_how_even_it_gets() -> None:
    report = plan_report(MAP, [Move(tuple(range(64)), 1, 2)], stats(), {})
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
    report = plan_report(MAP, [Move((5, 6), 1, 2), Move((7,), 1, 2)], known, {})
    assert [(move["keys"], move["bytes"]) for move in report["moves"]] == [(None, None), (2, 100)]
    assert (report["keys"], report["bytes"]) == (None, None)


def test_the_request_for_a_job() -> None:
    request = start_request(7, [Move((1, 2), 1, 2)], 3, 1000)
    assert request.start_plan == admin_pb2.StartPlan(
        epoch=7,
        moves=[admin_pb2.PlannedMove(slots=[1, 2], source=1, target=2)],
        concurrency=3,
        rate=1000,
    )


def test_no_job_ever() -> None:
    assert job_report(ClusterState(MAP, {}, True, admin_pb2.GetStateResponse()), {}) == {"job": None}


def test_a_job_under_way() -> None:
    state = state_with(
        {"done": 2, "done_slots": 4, "rate": 500, "pending": [admin_pb2.PlannedMove(slots=[4, 5], source=1, target=2)]},
        moves=[
            admin_pb2.Move(id=9, slots=[2, 3], source=1, target=2, started_ms=19_500),
            admin_pb2.Move(id=8, slots=[0, 1], source=1, target=2, phase=admin_pb2.MOVE_PHASE_COMMITTED),
        ],
        # The first is an earlier job's, the second was cancelled.
        finished=[
            finished(4, records=1000, bytes=99_999, freeze_ms=900),
            finished(5, committed=False, bytes=7),
            finished(6, records=10, bytes=1500, freeze_ms=30),
            finished(7, records=20, bytes=2500, freeze_ms=10),
        ],
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
    report = job_report(state_with({"done": 1, "done_slots": 2, "pending": [admin_pb2.PlannedMove(slots=[1])]}), {})
    assert report["job"]["bytes"] == {"moved": 0, "left": None}
    assert report["job"]["eta_seconds"] == 30.0
    assert job_report(state_with({}), {})["job"]["eta_seconds"] is None
    assert job_report(state_with({"done_slots": 2, "paused": True}), {})["job"]["eta_seconds"] is None


def test_an_ended_job_has_no_time_left_and_counts_until_its_end() -> None:
    job = job_report(state_with({"done": 4, "done_slots": 8, "ended_ms": 15_000}), {})["job"]
    assert (job["state"], job["percent"], job["seconds"], job["eta_seconds"]) == ("done", 100.0, 5.0, None)
    assert job["bytes"]["left"] == 0


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "running"),
        ({"paused": True}, "paused"),
        ({"cancelled": True}, "cancelling"),
        ({"ended_ms": 5}, "done"),
        ({"ended_ms": 5, "cancelled": True}, "cancelled"),
        ({"ended_ms": 5, "failed": 1}, "partly done"),
    ],
)
def test_states_of_a_job(values: dict[str, Any], word: str) -> None:
    assert job_state(admin_pb2.Job(**values)) == word


def test_percentiles_are_values_that_were_seen() -> None:
    values = list(range(1, 101))
    assert [percentile(values, percent) for percent in (50, 99, 100)] == [50, 99, 100]
    assert percentile([7], 99) == 7
    assert percentile([], 50) is None
