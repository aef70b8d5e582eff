"""``raftkv shell``: the other commands, a line each, with completion, history and help."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click
from click.core import ParameterSource
from click.shell_completion import ShellComplete, split_arg_string
from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from raftkv.cli.common import Exit, complain, endpoints_option
from raftkv.cli.main import cli, run

_PROMPT: Final = "raftkv> "
_HELP: Final = "help"
_ENDS: Final = ("exit", "quit")
_ENDPOINTS: Final = "RAFTKV_ENDPOINTS"


class Words(Completer):
    """Completes a line as a shell does that has raftkv's completion script."""

    def __init__(self) -> None:
        self._click = ShellComplete(cli, {}, "raftkv", "")
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        words = split_arg_string(text)
        begun = words.pop() if words and not text[-1:].isspace() else ""
        if not text.endswith(begun):
            return  # within quotes: what is begun is another text than what stands there
        if not words:
            yield from (Completion(word, -len(begun)) for word in (_HELP, *_ENDS) if word.startswith(begun))
        for item in self._click.get_completions([] if words == [_HELP] else words, begun):
            if item.type in ("file", "dir"):
                yield from self._paths.get_completions(Document(begun), complete_event)
            elif item.value != "shell":
                yield Completion(item.value, -len(begun), display_meta=item.help or "")


def history_of(path: Path) -> History:
    """The lines of earlier shells, kept in a file that only its owner reads; of this one if it cannot be written."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        complain(f"no history is kept: {error}")
        return InMemoryHistory()
    return FileHistory(path)


def home() -> Path:
    """The file of the history."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "raftkv" / "history"


def execute(line: str) -> int | None:
    """Run a line; its exit code, None = it ends the shell."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        complain(f"{error}".lower())
        return Exit.USAGE
    if not words or words[0].startswith("#"):
        return Exit.DONE
    if words[0] in _ENDS:
        return None
    if words[0] == _HELP:
        return run([*words[1:], "--help"])
    if words[0] == "shell":
        complain("this is the shell: type a command, help or exit")
        return Exit.USAGE
    return run(words)


@click.command()
@endpoints_option
@click.option("--no-history", is_flag=True, help="Keep no line in the history file.")
@click.pass_context
def shell(ctx: click.Context, endpoints: str, no_history: bool) -> int:
    """Run commands, a line each: those of raftkv, without its name.

    \b
    TAB            completes commands, options and files
    up, Ctrl-R     earlier lines
    help [COMMAND] what a command does
    exit, Ctrl-D   ends the shell

    If stdin is a file or a pipe, it ends at the first command that fails, with its exit code.

    \b
    Example:
      raftkv shell --endpoints 127.0.0.1:7401
    """
    usual = os.environ.get(_ENDPOINTS)
    if ctx.get_parameter_source("endpoints") is not ParameterSource.DEFAULT:
        os.environ[_ENDPOINTS] = endpoints
    try:
        if terminal():
            return _talk(InMemoryHistory() if no_history else history_of(home()))
        return _read(sys.stdin)
    finally:
        if usual is None:
            os.environ.pop(_ENDPOINTS, None)
        else:
            os.environ[_ENDPOINTS] = usual


def terminal() -> bool:
    """Whether somebody types."""
    return sys.stdin.isatty()


def _read(lines: Iterable[str]) -> int:
    for line in lines:
        code = execute(line)
        if code is None:
            break
        if code:
            return code
    return Exit.DONE


def _talk(history: History) -> int:
    for line in _typed(history):
        if execute(line) is None:
            break
    return Exit.DONE


def _typed(history: History) -> Iterator[str]:
    session: PromptSession[str] = PromptSession(
        _PROMPT,
        history=history,
        completer=Words(),
        auto_suggest=AutoSuggestFromHistory(),
        complete_while_typing=False,
    )
    while True:
        try:
            yield session.prompt()
        except KeyboardInterrupt:
            continue  # as shells do: a new line
        except EOFError:
            return
