"""``raftkv-admin cluster status|health``."""

from __future__ import annotations

import click

from raftkv.cli.admin.common import AdminExit, ask, command, emit
from raftkv.cli.admin.health import MAX_LAG, cluster_report, show_health, show_status
from raftkv.cli.admin.survey import survey

_LAG = click.option(
    "--max-lag",
    type=click.IntRange(min=0),
    default=MAX_LAG,
    show_default=True,
    metavar="ENTRIES",
    help="A replica that is further behind is a problem.",
)


@click.group("cluster")
def cluster_command() -> None:
    """The whole cluster."""


@command(cluster_command, "status")
@_LAG
def status(max_lag: int) -> None:
    """Show nodes, groups and replicas: leader, term, what each replica has committed and applied, and its lag.

    \b
    Example:
      raftkv-admin cluster status
    """
    emit(cluster_report(ask(survey), max_lag), show_status)


@command(cluster_command, "health")
@_LAG
def health(max_lag: int) -> int:
    """Name every problem of the cluster. Exits with 5 if there is one.

    A group without a leader, a node that does not answer or is drained, a replica that is missing or lags, a group
    without its desired voters.

    \b
    Example:
      raftkv-admin cluster health --max-lag 100
    """
    report = cluster_report(ask(survey), max_lag)
    emit({key: report[key] for key in ("cluster_id", "epoch", "healthy", "nodes", "groups", "problems")}, show_health)
    return AdminExit.DONE if report["healthy"] else AdminExit.UNHEALTHY
