"""The command ``raftkv``."""

from __future__ import annotations

import os
import sys

import click

import raftkv
from raftkv.cli.common import Exit, complain, describe, exit_code
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
    "load": "raftkv.cli.transfer",
    "dump": "raftkv.cli.transfer",
}


class _Lazy(click.Group):
    """Imports a command's module when it is asked for: ``serve`` needs no client, ``get`` no server."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        home = _COMMANDS.get(cmd_name)
        if home is None:
            return None
        from importlib import import_module

        command: click.Command = getattr(import_module(home), cmd_name)
        return command


@click.command(cls=_Lazy, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(raftkv.__version__, prog_name="raftkv")
def cli() -> None:
    """A strongly consistent, sharded, replicated key-value store."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; errors go to stderr."""
    fill_standard_files()
    sys.exit(run(arguments))


def fill_standard_files() -> None:
    """Open those of stdin, stdout and stderr that the caller closed, so that no data file gets their number.

    Libraries in C write to file 2 whatever it is: it must never be the log of a node.
    """
    while (file := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(file, True)
        name, mode = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))[file]
        setattr(sys, name, open(file, mode, closefd=False))  # noqa: SIM115
    os.close(file)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        code = cli.main(arguments, prog_name="raftkv", standalone_mode=False)
    except click.exceptions.Abort:
        complain("interrupted")
        return Exit.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return Exit.USAGE if isinstance(error, click.UsageError) else Exit.ERROR
    except KeyboardInterrupt:
        complain("interrupted")
        return Exit.INTERRUPTED
    except RaftKVError as error:
        # Before OSError, which some of them are too.
        complain(describe(error))
        return exit_code(error)
    except OSError as error:
        # Commands report what they meet elsewhere, so this is the output. Nothing more can be said to it, not even at
        # interpreter exit. A reader that has gone wants to hear nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            complain(f"cannot go on: {error}")
        return Exit.ERROR
    return code if isinstance(code, int) else Exit.DONE


if __name__ == "__main__":
    main()
