"""What a command line is: its commands, loaded when they are asked for; how it runs, fails and completes words."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final, NoReturn

import click
from click.shell_completion import get_completion_class

from raftkv.cli.common import Exit, Interrupted, say, silence

_DEBUG: Final = "RAFTKV_DEBUG"


class LazyGroup(click.Group):
    """Imports a command's module when it is asked for: ``serve`` needs no client, ``get`` no server.

    ``homes``: command -> its module, in which it has the command's name, with ``_`` for ``-``, and ``suffix``.
    """

    def __init__(self, *args: Any, homes: Mapping[str, str], suffix: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._homes = homes
        self._suffix = suffix

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._homes, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        home = self._homes.get(cmd_name)
        if home is None:
            return super().get_command(ctx, cmd_name)
        command: click.Command = getattr(import_module(home), cmd_name.replace("-", "_") + self._suffix)
        return command


@dataclass(frozen=True, slots=True)
class Program:
    """A command line that ends with an exit code and says on stderr why, never with a traceback unless asked to.

    ``errors``: what its commands raise by design, ``exit_code`` and ``explain`` what becomes of these.
    """

    name: str
    cli: click.Group
    errors: tuple[type[Exception], ...]
    exit_code: Callable[[Any], int]
    explain: Callable[[Any], str]

    @property
    def _complete_variable(self) -> str:
        return f"_{self.name.replace('-', '_').upper()}_COMPLETE"

    def complain(self, message: str) -> None:
        """One line for people, on stderr."""
        say(f"{self.name}: {message}")

    def main(self, arguments: list[str] | None = None) -> NoReturn:
        """Run the command line and exit with its code."""
        fill_standard_files()
        _print_anything()
        sys.exit(self.run(arguments))

    def run(self, arguments: list[str] | None = None) -> int:
        """Run the command line and return its exit code."""
        try:
            code = self.cli.main(
                arguments, prog_name=self.name, complete_var=self._complete_variable, standalone_mode=False
            )
        except (click.exceptions.Abort, KeyboardInterrupt):
            self.complain("interrupted")
            return Exit.INTERRUPTED
        except Interrupted as error:
            self.complain(f"interrupted; {error}" if str(error) else "interrupted")
            return Exit.INTERRUPTED
        except click.ClickException as error:
            usage = io.StringIO()
            error.show(usage)
            say(usage.getvalue().rstrip("\n"))
            return Exit.USAGE if isinstance(error, click.UsageError) else Exit.ERROR
        except self.errors as error:
            for line in (self.explain(error), *getattr(error, "__notes__", ())):
                self.complain(line)
            return self.exit_code(error)
        except OSError as error:
            # Commands report what they meet elsewhere, so this is the output. A reader that has gone wants to hear
            # nothing.
            silence(sys.stdout)
            if not isinstance(error, BrokenPipeError):
                self.complain(f"cannot continue: {error}")
            return Exit.ERROR
        except Exception as error:  # noqa: BLE001 - a mistake of ours, told as such
            text = " ".join(f"{type(error).__name__}: {error}".split())
            how = "" if (shown := os.environ.get(_DEBUG)) else f" ({_DEBUG}=1 in the environment shows the traceback)"
            if shown:
                traceback.print_exc()
            self.complain(f"internal error, please report it: {text}{how}")
            return Exit.ERROR
        return code if isinstance(code, int) else Exit.DONE

    def add_completion(self) -> None:
        """Give it the command ``completion``."""

        @self.cli.command("completion", help=_COMPLETION.format(name=self.name))
        @click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
        def completion(shell: str) -> None:
            kind = get_completion_class(shell)
            assert kind is not None
            maker = kind(self.cli, {}, self.name, self._complete_variable)
            # Not source(): that of bash runs bash, to see how old it is.
            click.echo(maker.source_template % maker.source_vars())


_COMPLETION = """Print the completion script of a shell.

\b
Example:
  eval "$({name} completion bash)"      in ~/.bashrc
  eval "$({name} completion zsh)"       in ~/.zshrc
  {name} completion fish | source       in ~/.config/fish/config.fish
"""


def _print_anything() -> None:
    """File names may be bytes of no encoding, and the locale's encoding may lack characters: neither is an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            utf8 = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")


def fill_standard_files() -> None:
    """Open those of stdin, stdout and stderr that the caller closed, so that no data file gets their number.

    Libraries in C write to file 2 whatever it is: it must never be the log of a node. To read a closed stdin stays an
    error: it is no empty value.
    """
    for file, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(file)
        except OSError:
            # The lowest number that is free is this one.
            os.open(os.devnull, os.O_WRONLY if name == "stdin" else os.O_RDWR)
            os.set_inheritable(file, True)
            setattr(sys, name, open(file, mode, closefd=False))  # noqa: SIM115
