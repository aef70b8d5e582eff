"""The command ``raftkv-admin``."""

from __future__ import annotations

import os
import sys
import traceback

import click
from click.shell_completion import get_completion_class

import raftkv
from raftkv.cli.admin.common import AdminExit, Interrupted, complain, exit_code, explain, global_options
from raftkv.cli.main import fill_standard_files
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
  6    partial: not all was done, and the same command goes on
  130  interrupted; what was started in the cluster goes on
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
    "completion": "raftkv.cli.admin.main",
}
_PROGRAM = "raftkv-admin"
_COMPLETE = "_RAFTKV_ADMIN_COMPLETE"


class _Lazy(click.Group):
    """Imports a noun's module when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        home = _COMMANDS.get(cmd_name)
        if home is None:
            return None
        from importlib import import_module

        # This module has another name when it is run with -m.
        module = sys.modules[__name__] if home.endswith(".main") else import_module(home)
        found: click.Command = getattr(module, f"{cmd_name}_command")
        return found


@click.command(cls=_Lazy, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(raftkv.__version__, prog_name=_PROGRAM)
@global_options
def cli() -> None:
    """Look after a raftkv cluster: its health, slots, groups, nodes, leaders and backups.

    Options may stand here or after the command.
    """


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  eval "$(raftkv-admin completion bash)"
    zsh:   eval "$(raftkv-admin completion zsh)"
    fish:  raftkv-admin completion fish | source
    """
    kind = get_completion_class(shell)
    assert kind is not None
    maker = kind(cli, {}, _PROGRAM, _COMPLETE)
    # Not source(): that of bash runs bash, to see how old it is.
    click.echo(maker.source_template % maker.source_vars())


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; errors go to stderr."""
    fill_standard_files()
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code. Never raises, and shows no traceback unless asked to."""
    try:
        code = cli.main(arguments, prog_name=_PROGRAM, complete_var=_COMPLETE, standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        complain("interrupted")
        return AdminExit.INTERRUPTED
    except Interrupted as error:
        complain(f"interrupted; {error}" if str(error) else "interrupted")
        return AdminExit.INTERRUPTED
    except click.ClickException as error:
        error.show()
        return AdminExit.USAGE if isinstance(error, click.UsageError) else AdminExit.ERROR
    except (RaftKVError, PlanError) as error:
        complain(explain(error))
        return exit_code(error)
    except BrokenPipeError:
        # Nothing more can be said there, not even at interpreter exit; a reader that has gone wants to hear nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return AdminExit.ERROR
    except OSError as error:
        complain(f"cannot go on: {error}")
        return AdminExit.ERROR
    except Exception as error:  # noqa: BLE001 - a mistake of ours, told as such
        complain(f"a mistake in raftkv-admin itself, please report it: {type(error).__name__}: {error}")
        if os.environ.get("RAFTKV_DEBUG"):
            traceback.print_exc()
        else:
            complain("RAFTKV_DEBUG=1 in the environment shows where it happened")
        return AdminExit.ERROR
    return code if isinstance(code, int) else AdminExit.DONE


if __name__ == "__main__":
    main()
