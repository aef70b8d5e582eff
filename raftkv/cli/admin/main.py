"""The command ``raftkv-admin``."""

from __future__ import annotations

import click

import raftkv
from raftkv.cli.admin.common import exit_code, explain, global_options
from raftkv.cli.program import LazyGroup, Program
from raftkv.errors import RaftKVError
from shards.planner import PlanError

_EPILOG = """\b
Exit codes:
  0    done
  1    error
  2    wrong usage
  3    no node answered in time
  4    refused: it cannot be done as the cluster is now, and nothing was changed
  5    unhealthy: a problem was found
  6    partial: not all was done, and the same command resumes
  130  interrupted; what was started in the cluster continues
"""

_COMMANDS = {
    "cluster": "raftkv.cli.admin.cluster",
    "map": "raftkv.cli.admin.maps",
    "slot": "raftkv.cli.admin.slots",
    "rebalance": "raftkv.cli.admin.rebalance",
    "group": "raftkv.cli.admin.groups",
    "node": "raftkv.cli.admin.nodes",
    "leader": "raftkv.cli.admin.leaders",
    "check": "raftkv.cli.admin.checks",
    "backup": "raftkv.cli.admin.backup",
    "cert": "raftkv.cli.admin.certs",
    "user": "raftkv.cli.admin.users",
    "role": "raftkv.cli.admin.roles",
    "audit": "raftkv.cli.admin.audit",
}


@click.command(
    cls=LazyGroup,
    homes=_COMMANDS,
    suffix="_command",
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(raftkv.__version__, prog_name="raftkv-admin")
@global_options
def cli() -> None:
    """Administer a raftkv cluster: its health, slots, groups, nodes, leaders, users and backups.

    Options may stand here or after the command.
    """


_PROGRAM = Program("raftkv-admin", cli, (RaftKVError, PlanError), exit_code, explain)
_PROGRAM.add_completion()
main = _PROGRAM.main
run = _PROGRAM.run

if __name__ == "__main__":
    main()
