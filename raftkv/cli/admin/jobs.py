"""Plans of slot moves and the jobs that carry them out: identity, reports, progress. Pure."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from raftkv.api.status import ClusterState, FinishedMove, Job, SlotStats
from raftkv.cli.admin.text import counted, ranges_text, rate_text, shortened, size_text, time_text
from raftkv.cli.console import Section
from raftkv.v1 import admin_pb2
from shards.map import ShardMap
from shards.moves import Phase
from shards.planner import Balance, Move, balance

StatsOfSlots = Mapping[int, SlotStats]
"""Slot -> its stats; slots of which nothing is known are missing."""


def plan_id(epoch: int, moves: Sequence[Move]) -> str:
    """Short name of a plan: another one for other moves, or for another map."""
    plain = [epoch, sorted([move.source, move.target, *move.slots] for move in moves)]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:12]


def start_request(epoch: int, moves: Iterable[Move], concurrency: int, rate: int) -> admin_pb2.ChangeRequest:
    """The change that starts a job of ``moves``."""
    planned = [admin_pb2.PlannedMove(slots=move.slots, source=move.source, target=move.target) for move in moves]
    plan = admin_pb2.StartPlan(epoch=epoch, moves=planned, concurrency=concurrency, rate=rate)
    return admin_pb2.ChangeRequest(start_plan=plan)


# A plan


def plan_report(
    shard_map: ShardMap, moves: Sequence[Move], stats: StatsOfSlots, weights: Mapping[int, float]
) -> dict[str, Any]:
    """What ``moves`` would do. Keys and bytes are None where not all slots have stats."""
    after = shard_map
    for move in moves:
        after = after.with_owner(move.slots, move.target)
    before_balance, after_balance = balance(shard_map, weights), balance(after, weights)
    moving = [slot for move in moves for slot in move.slots]
    keys, size = _sums(moving, stats)
    return {
        "plan_id": plan_id(shard_map.epoch, moves),
        "epoch": shard_map.epoch,
        "moves": [_planned(move, stats) for move in moves],
        "slots": len(moving),
        "keys": keys,
        "bytes": size,
        "moved_share": round(len(moving) / shard_map.slots, 4),
        "balance": [
            {"group": old.group, "before": old.slots, "after": new.slots, "ideal": round(old.ideal, 2)}
            for old, new in zip(before_balance.shares, after_balance.shares, strict=True)
        ],
        "peak_to_mean": {"before": _peak(before_balance), "after": _peak(after_balance)},
    }


def _planned(move: Move, stats: StatsOfSlots) -> dict[str, Any]:
    keys, size = _sums(move.slots, stats)
    return {
        "source": move.source,
        "target": move.target,
        "slots": ranges_text(move.slots),
        "slot_count": len(move.slots),
        "keys": keys,
        "bytes": size,
    }


def _sums(slots: Sequence[int], stats: StatsOfSlots) -> tuple[int | None, int | None]:
    """Keys and bytes of ``slots``, None if some of them have no stats."""
    if any(slot not in stats for slot in slots):
        return None, None
    return sum(stats[slot].keys for slot in slots), sum(stats[slot].bytes for slot in slots)


def _peak(found: Balance) -> float:
    return round(found.peak_to_mean, 3)


def show_plan(report: dict[str, Any]) -> Iterator[Section | str]:
    """The tables of a plan."""
    if report["moves"]:
        moves: list[tuple[object, ...]] = [
            (
                move["source"],
                move["target"],
                move["slot_count"],
                known(move["keys"]),
                known_size(move["bytes"]),
                shortened(move["slots"]),
            )
            for move in report["moves"]
        ]
        yield Section("", ("from", "to", "slots", "keys", "bytes", "which"), moves)
    rows: list[tuple[object, ...]] = [
        (share["group"], share["before"], share["after"], share["ideal"]) for share in report["balance"]
    ]
    yield Section("", ("group", "slots now", "after", "ideal"), rows)
    if not report["moves"]:
        yield "balanced: there is nothing to move"
        return
    peak = report["peak_to_mean"]
    yield (
        f"plan {report['plan_id']}: {counted(report['slots'], 'slot')} ({report['moved_share']:.1%}), "
        f"{known_size(report['bytes'])}; fullest group over its share {peak['before']} now, {peak['after']} after"
    )


def known(number: int | None) -> object:
    """A number for people, "-" if it is not known."""
    return "-" if number is None else number


def known_size(size: float | None) -> str:
    """Bytes for people."""
    return "unknown size" if size is None else size_text(size)


# A job


def job_report(state: ClusterState, stats: StatsOfSlots) -> dict[str, Any]:
    """How far the latest job is; {"job": None} if there never was one.

    ``percent``: of the plan's slots that have changed owner. Rate and time left are guesses from what is done so far.
    Freeze times, in ms, are of the job's finished moves.
    """
    job = state.job
    if job is None:
        return {"job": None}
    finished = committed_moves(state, job)
    freezes = sorted(move.freeze for move in finished)
    left = [slot for one in job.pending for slot in one.slots]
    left += [slot for move in state.moves if move.phase is Phase.STARTED for slot in move.slots]
    keys_left, bytes_left = _sums(left, stats)
    end = job.ended or state.now
    seconds = max(0, end - job.started) / 1000
    moved = sum(move.bytes for move in finished)
    return {
        "job": {
            "id": job.id,
            "state": job_state(job),
            "percent": round(100 * job.done_slots / job.slots, 1) if job.slots else 100.0,
            "moves": {
                "total": job.moves,
                "done": job.done,
                "failed": job.failed,
                "under_way": len(state.moves),
                "waiting": len(job.pending),
            },
            "slots": {"total": job.slots, "done": job.done_slots, "left": len(left)},
            "keys": {"moved": sum(move.records for move in finished), "left": keys_left},
            "bytes": {"moved": moved, "left": bytes_left},
            "rate": round(moved / seconds, 1) if seconds else None,
            "rate_limit": job.rate,
            "concurrency": job.concurrency,
            "seconds": round(seconds, 1),
            "eta_seconds": None if job.ended or job.paused else _eta(job, seconds, moved, bytes_left),
            "freeze_ms": {
                "moves": len(freezes),
                "p50": percentile(freezes, 50),
                "p99": percentile(freezes, 99),
                "max": freezes[-1] if freezes else None,
            },
        },
        "under_way": [
            {
                "move": move.id,
                "source": move.source,
                "target": move.target,
                "slots": ranges_text(move.slots),
                "phase": str(move.phase),
                "seconds": round(max(0, state.now - move.started) / 1000, 1),
            }
            for move in state.moves
        ],
    }


def committed_moves(state: ClusterState, job: Job) -> list[FinishedMove]:
    """The job's moves that have changed owner, as far as they are remembered.

    Moves of earlier jobs are remembered too. Jobs follow one another, so this one's are the latest.
    """
    committed = [move for move in state.finished if move.committed]
    return committed[len(committed) - min(job.done, len(committed)) :]


def job_state(job: Job) -> str:
    """``running``, ``paused``, ``cancelling``, ``cancelled``, ``done`` or ``partly done``."""
    if job.open:
        return "cancelling" if job.cancelled else "paused" if job.paused else "running"
    if job.cancelled:
        return "cancelled"
    return "partly done" if job.failed else "done"


def percentile(ordered: Sequence[int], percent: float) -> int | None:
    """The smallest of ``ordered`` that at least ``percent`` of them do not exceed; None of nothing."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _eta(job: Job, seconds: float, moved: int, bytes_left: int | None) -> float | None:
    """Seconds left, by bytes if they say something, else by slots; None while nothing is done."""
    if seconds <= 0 or not job.done_slots:
        return None
    if moved and bytes_left:
        return round(bytes_left / (moved / seconds), 1)
    return round(seconds * (job.slots - job.done_slots) / job.done_slots, 1)


def show_job(report: dict[str, Any]) -> Iterator[Section | str]:
    """The lines and the table of ``rebalance status``."""
    job = report["job"]
    if job is None:
        yield "no slots have been moved yet"
        return
    moves, slots, freeze = job["moves"], job["slots"], job["freeze_ms"]
    failed = f", {moves['failed']} not done" if moves["failed"] else ""
    rate = "-" if job["rate"] is None else f"{size_text(job['rate'])}/s"
    yield Section(
        "",
        (f"job {job['id']}", job["state"]),
        [
            ("slots", f"{slots['done']} of {slots['total']} ({job['percent']:g} %), {slots['left']} left"),
            ("moves", f"{moves['done']} of {moves['total']}, {moves['under_way']} under way{failed}"),
            ("keys", f"{job['keys']['moved']:,} moved, {_left(job['keys']['left'])} left"),
            ("bytes", f"{size_text(job['bytes']['moved'])} moved, {known_size(job['bytes']['left'])} left"),
            ("rate", f"{rate}, limit {rate_text(job['rate_limit'])}, {counted(job['concurrency'], 'move')} at a time"),
            ("time", _duration(job)),
            ("freeze", f"p50 {_ms(freeze['p50'])}, p99 {_ms(freeze['p99'])}, max {_ms(freeze['max'])}"),
        ],
    )
    if report["under_way"]:
        rows = [
            (
                one["move"],
                one["source"],
                one["target"],
                one["phase"],
                time_text(one["seconds"]),
                shortened(one["slots"]),
            )
            for one in report["under_way"]
        ]
        yield Section("", ("move", "from", "to", "phase", "since", "slots"), rows)


def _duration(job: dict[str, Any]) -> str:
    if job["state"] in ("running", "paused", "cancelling"):
        return f"{time_text(job['seconds'])} so far, {time_text(job['eta_seconds'])} left"
    return time_text(job["seconds"])


def _left(keys: int | None) -> str:
    return "?" if keys is None else f"{keys:,}"


def _ms(value: int | None) -> str:
    return "-" if value is None else f"{value} ms"
