"""The command ``raftkv``."""

from __future__ import annotations

import click

import raftkv
from raftkv.cli.common import describe, exit_code
from raftkv.cli.program import LazyGroup, Program
from raftkv.errors import RaftKVError

_EPILOG = """\b
Exit codes:
  0    done
  1    error
  2    wrong usage
  3    no node answered in time
  4    condition not met, or no such key
  130  interrupted
"""

_COMMANDS = {
    "up": "raftkv.cli.cluster",
    "down": "raftkv.cli.cluster",
    "status": "raftkv.cli.cluster",
    "serve": "raftkv.cli.serve",
    "health": "raftkv.cli.serve",
    "get": "raftkv.cli.kv",
    "put": "raftkv.cli.kv",
    "delete": "raftkv.cli.kv",
    "incr": "raftkv.cli.updates",
    "append": "raftkv.cli.updates",
    "touch": "raftkv.cli.updates",
    "persist": "raftkv.cli.updates",
    "txn": "raftkv.cli.transaction",
    "scan": "raftkv.cli.ranges",
    "count": "raftkv.cli.ranges",
    "delete-prefix": "raftkv.cli.ranges",
    "watch": "raftkv.cli.watching",
    "load": "raftkv.cli.transfer",
    "dump": "raftkv.cli.transfer",
    "context": "raftkv.cli.context",
    "shell": "raftkv.cli.shell",
}


@click.command(cls=LazyGroup, homes=_COMMANDS, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(raftkv.__version__, prog_name="raftkv")
def cli() -> None:
    """A strongly consistent, sharded, replicated key-value store."""


_PROGRAM = Program("raftkv", cli, (RaftKVError,), exit_code, describe)
_PROGRAM.add_completion()
main = _PROGRAM.main
run = _PROGRAM.run

if __name__ == "__main__":
    main()
