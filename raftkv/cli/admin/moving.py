"""Starting a job of slot moves, and waiting for its end: what `slot move`, `rebalance` and `group drain` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

import click

from raftkv.api.status import ClusterState
from raftkv.cli.admin.common import AdminExit, ask, complain, emit
from raftkv.cli.admin.jobs import job_report, plan_report, show_job, show_plan, start_request
from raftkv.cli.admin.survey import slot_stats
from raftkv.cli.admin.text import parse_rate
from raftkv.cli.admin.watch import DEFAULT_WAIT, Seen, until, wait_options
from raftkv.client.admin import AdminClient
from shards.planner import Move, batches

F = TypeVar("F", bound=Callable[..., Any])

_EQUAL: Final[Mapping[int, float]] = MappingProxyType({})
DEFAULT_CONCURRENCY: Final = 2
DEFAULT_SLOTS_PER_MOVE: Final = 16
GOES_ON: Final = "the job continues in the cluster: `raftkv-admin rebalance status` shows it, `cancel` ends it"


class JobOptions(NamedTuple):
    """How a job is carried out. ``rate``: bytes per second, 0 = unlimited."""

    rate: int = 0
    concurrency: int = DEFAULT_CONCURRENCY
    slots_per_move: int = DEFAULT_SLOTS_PER_MOVE
    wait: bool = False
    wait_timeout: float = DEFAULT_WAIT


class _Rate(click.ParamType[int]):
    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_rate(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


RATE: Final = _Rate()


def job_options(command: F) -> F:
    """The options that make a :class:`JobOptions`."""
    options = [
        click.option(
            "--rate",
            type=RATE,
            default="unlimited",
            show_default=True,
            metavar="BYTES",
            help="Bytes per second to copy at most, all moves together: 10MB, 512KiB.",
        ),
        click.option(
            "--concurrency",
            type=click.IntRange(1, 64),
            default=DEFAULT_CONCURRENCY,
            show_default=True,
            help="Moves in flight at a time.",
        ),
        click.option(
            "--slots-per-move",
            type=click.IntRange(1, 16384),
            default=DEFAULT_SLOTS_PER_MOVE,
            show_default=True,
            help="Slots that change owner together, and are frozen together for a moment.",
        ),
        wait_options(default=False),
    ]
    for option in reversed(options):
        command = option(command)
    return command


async def start(client: AdminClient, state: ClusterState, moves: Sequence[Move], options: JobOptions) -> int:
    """Start a job of ``moves``; its id. Raises ConditionFailed if the map has changed or another job is under way."""
    cut = batches(moves, options.slots_per_move)
    return await client.change(start_request(state.map.epoch, cut, options.concurrency, options.rate))


async def finish(client: AdminClient, job: int, timeout: float) -> ClusterState:
    """Wait for the end of ``job``; the state then. Raises Partial if it lasts longer than ``timeout`` seconds."""

    def look(state: ClusterState) -> Seen:
        found = state.job
        if found is None or found.id != job:
            return Seen(1, 1, "another job has begun", over=True)
        note = "paused" if found.paused else f"{found.done_slots} of {found.slots} slots"
        return Seen(found.done_slots, found.slots, note, over=bool(found.ended))

    return await until(client, look, title="moving slots", timeout=timeout)


async def report_of(client: AdminClient, state: ClusterState) -> dict[str, Any]:
    """How far the latest job is."""
    job = state.job
    known = {} if job is None or job.ended else await slot_stats(client, state.map)
    return job_report(state, known)


Planner = Callable[[ClusterState], Sequence[Move]]


def carry_out(
    plan: Planner,
    options: JobOptions,
    *,
    weights: Mapping[int, float] = _EQUAL,
    check: Callable[[dict[str, Any]], None] = lambda _: None,
    dry_run: bool = False,
    nothing: str = "there is nothing to move",
) -> int:
    """Plan, start and perhaps await a job; print what came of it. Returns the exit code.

    ``check`` sees the report of the plan before anything starts, and may raise. JSON: the plan's fields, ``job``: the
    started job's id or None, and with ``options.wait`` the fields of the job's report under ``result``.
    """

    async def main(client: AdminClient) -> tuple[dict[str, Any], int | None, dict[str, Any] | None]:
        state = await client.state()
        moves = plan(state)
        report = plan_report(state.map, moves, await slot_stats(client, state.map), weights)
        check(report)
        if dry_run or not moves:
            return report, None, None
        job = await start(client, state, moves, options)
        if not options.wait:
            return report, job, None
        return report, job, await report_of(client, await finish(client, job, options.wait_timeout))

    report, job, result = ask(main, GOES_ON)
    show = show_plan if result is None else lambda _: show_job(result)
    if not report["moves"]:
        emit({**report, "job": None}, lambda _: [nothing])
        return AdminExit.DONE
    emit({**report, "job": job, **({} if result is None else {"result": result})}, show)
    if job is not None and result is None:
        complain(f"job {job} has started: `raftkv-admin rebalance status` shows how far it is")
    return ending(result)


def ending(result: dict[str, Any] | None) -> int:
    """Exit code for a job's report: 6 if it has ended and not all was moved."""
    if result is None or result["job"] is None or result["job"]["state"] not in ("partly done", "cancelled"):
        return AdminExit.DONE
    complain("not all slots were moved: the same command plans what is left")
    return AdminExit.PARTIAL
