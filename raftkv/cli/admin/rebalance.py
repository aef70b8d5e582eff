"""``raftkv-admin rebalance plan|apply|status|tune|pause|resume|cancel``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from raftkv.cli.admin.common import Precondition, ask, command, emit
from raftkv.cli.admin.jobs import plan_report, show_job, show_plan
from raftkv.cli.admin.moving import GOES_ON, RATE, JobOptions, carry_out, ending, finish, job_options, report_of
from raftkv.cli.admin.survey import slot_stats
from raftkv.cli.admin.text import parse_weights
from raftkv.cli.admin.watch import wait_options
from raftkv.client.admin import AdminClient
from raftkv.v1 import admin_pb2
from shards.planner import plan_slots

_WEIGHT = click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="GROUP=WEIGHT",
    help="The group's share against that of others, which have 1; 0 empties it. May be given more than once.",
)


@click.group("rebalance")
def rebalance_command() -> None:
    """Spread the slots over the groups."""


def _weights(items: tuple[str, ...]) -> Mapping[int, float]:
    try:
        return parse_weights(items)
    except ValueError as error:
        raise click.UsageError(f"--weight: {error}") from None


@command(rebalance_command, "plan")
@_WEIGHT
def plan(weights: tuple[str, ...]) -> None:
    """Show the fewest moves after which each group has its share of the slots. Changes nothing.

    \b
    Example:
      raftkv-admin rebalance plan --weight 3=0.5
    """
    chosen = _weights(weights)

    async def main(client: AdminClient) -> dict[str, Any]:
        state = await client.state()
        known = await slot_stats(client, state.map)
        return plan_report(state.map, plan_slots(state.map, chosen), known, chosen)

    emit(ask(main), show_plan)


@command(rebalance_command, "apply")
@_WEIGHT
@click.option("--plan-id", metavar="ID", help="Only if the plan is still this one of `rebalance plan`.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@job_options
def apply(weights: tuple[str, ...], plan_id: str | None, dry_run: bool, **options: Any) -> int:
    """Start moving slots so that each group has its share. Continues in the cluster across leader changes.

    Exits with 4 if the plan is not that of --plan-id, or a job is under way already.

    \b
    Example:
      raftkv-admin rebalance apply --plan-id 618529950368 --rate 10MB
    """
    chosen = _weights(weights)

    def check(report: dict[str, Any]) -> None:
        if plan_id is not None and report["plan_id"] != plan_id:
            raise Precondition(
                f"the plan is {report['plan_id']} now, not {plan_id}: the cluster has changed, plan again"
            )

    return carry_out(
        lambda state: plan_slots(state.map, chosen),
        JobOptions(**options),
        weights=chosen,
        check=check,
        dry_run=dry_run,
        nothing="balanced: there is nothing to move",
    )


@command(rebalance_command, "status")
@wait_options(default=False)
def status(wait: bool, wait_timeout: float) -> int:
    """Show how far the job is that moves slots, or how the last one ended.

    \b
    Example:
      raftkv-admin rebalance status --wait
    """

    async def main(client: AdminClient) -> dict[str, Any]:
        state = await client.state()
        if wait and state.job is not None:
            state = await finish(client, state.job.id, wait_timeout)
        return await report_of(client, state)

    report = ask(main, GOES_ON)
    emit(report, show_job)
    return ending(report) if wait else 0


def _change(request: admin_pb2.ChangeRequest, what: str) -> None:
    job = ask(lambda client: client.change(request))
    emit({"job": job}, lambda _: [f"job {job} {what}"])


@command(rebalance_command, "pause")
def pause() -> None:
    """Start no further moves; those under way are finished.

    \b
    Example:
      raftkv-admin rebalance pause
    """
    _change(admin_pb2.ChangeRequest(pause=True), "is paused: `raftkv-admin rebalance resume` resumes it")


@command(rebalance_command, "resume")
def resume() -> None:
    """Resume a paused job.

    \b
    Example:
      raftkv-admin rebalance resume
    """
    _change(admin_pb2.ChangeRequest(pause=False), "is resumed")


@command(rebalance_command, "cancel")
def cancel() -> None:
    """End the job: what has not changed owner yet stays where it was.

    \b
    Example:
      raftkv-admin rebalance cancel
    """
    _change(admin_pb2.ChangeRequest(cancel=True), "is cancelled: what was moved stays moved")


@command(rebalance_command, "tune")
@click.option("--rate", type=RATE, metavar="BYTES", help="Bytes per second, or unlimited.")
@click.option("--concurrency", type=click.IntRange(1, 64), help="Moves in flight at a time.")
def tune(rate: int | None, concurrency: int | None) -> None:
    """Change the rate and concurrency of the running job.

    \b
    Example:
      raftkv-admin rebalance tune --rate 512KiB
    """
    if rate is None and concurrency is None:
        raise click.UsageError("give --rate or --concurrency")

    async def main(client: AdminClient) -> int:
        job = (await client.state()).job
        if job is None or job.ended:
            raise Precondition("nothing is under way")
        chosen = admin_pb2.Pace(
            concurrency=job.concurrency if concurrency is None else concurrency, rate=job.rate if rate is None else rate
        )
        return await client.change(admin_pb2.ChangeRequest(pace=chosen))

    job = ask(main)
    emit({"job": job}, lambda _: [f"job {job} is tuned"])
