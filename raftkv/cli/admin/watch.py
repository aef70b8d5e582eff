"""Waiting for what goes on in the cluster, with a progress bar for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, TypeVar

import click
from rich.progress import Progress, TaskProgressColumn, TimeElapsedColumn

from raftkv.api.status import ClusterState
from raftkv.cli.admin.common import Partial
from raftkv.cli.console import make_progress
from raftkv.cli.parameters import Duration, duration_text
from raftkv.client.admin import AdminClient
from raftkv.clock import Clock, SystemClock, sleep
from raftkv.errors import DeadlineExceeded, Unavailable

F = TypeVar("F", bound=Callable[..., Any])

_INTERVAL: Final = 0.2
"""Seconds between two looks."""

_PATIENCE: Final = 60.0
"""Seconds for which the cluster may not answer, as when its meta group elects a leader, before waiting ends."""

DEFAULT_WAIT: Final = 3600.0
_NO_LONGER: Final = "Wait no longer than this; exit code 6 then. The work continues in the cluster."


class Seen(NamedTuple):
    """How far it is. ``note``: what to say beside the bar; ``over``: there is nothing more to wait for."""

    done: float
    total: float
    note: str
    over: bool


class Bar:
    """A progress bar on stderr, if that is a terminal."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=None, note="")

    def show(self, done: float, total: float, note: str = "") -> None:
        """Draw it anew."""
        self._progress.update(self._task, completed=done, total=max(total, 1), note=note)


@contextmanager
def progress_bar(title: str) -> Iterator[Bar]:
    """A bar for as long as the context lasts."""
    with make_progress(TaskProgressColumn(), TimeElapsedColumn(), "{task.fields[note]}", transient=True) as shown:
        yield Bar(shown, title)


async def until(
    client: AdminClient,
    look: Callable[[ClusterState], Seen],
    *,
    title: str,
    timeout: float,
    clock: Clock | None = None,
) -> ClusterState:
    """Look at the cluster's state again and again until ``look`` says that it is over; that state.

    Raises Partial after ``timeout`` seconds, Unavailable if the cluster does not answer for a minute.
    """
    clock = clock or SystemClock()
    end = clock.now() + timeout
    heard = clock.now()
    note = ""
    with progress_bar(title) as bar:
        while True:
            try:
                state = await client.state()
            except (Unavailable, DeadlineExceeded):
                if clock.now() - heard > _PATIENCE:
                    raise
            else:
                heard = clock.now()
                seen = look(state)
                bar.show(seen.done, seen.total, seen.note)
                note = seen.note
                if seen.over:
                    return state
            if clock.now() >= end:
                raise Partial(f"not done within {timeout:g} s{f' ({note})' if note else ''}; it continues")
            await sleep(clock, _INTERVAL)


def wait_timeout_option(default: float = DEFAULT_WAIT, text: str = _NO_LONGER) -> Callable[[F], F]:
    """``--wait-timeout``, ``default`` in seconds."""
    return click.option("--wait-timeout", type=Duration(), default=duration_text(default), show_default=True, help=text)


def wait_options(default: bool) -> Callable[[F], F]:
    """``--wait/--no-wait`` and ``--wait-timeout``."""

    def add(command: F) -> F:
        wait = click.option("--wait/--no-wait", default=default, show_default=True, help="Wait until it is done.")
        return wait(wait_timeout_option()(command))

    return add
