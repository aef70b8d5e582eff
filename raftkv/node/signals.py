"""Signals of a node: those that stop it, the one that reloads, and those that are ignored."""

from __future__ import annotations

import logging
import signal
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

log = logging.getLogger(__name__)


def _known(*names: str) -> tuple[signal.Signals, ...]:
    """Those of ``names`` that this system has."""
    return tuple(signal.Signals[name] for name in names if name in signal.Signals.__members__)


_END: Final = _known("SIGTERM", "SIGINT", "SIGPWR", "SIGXCPU")
"""Power and the processor time that the node may take are running out in the case of the last two."""

_NOTED: Final = _known("SIGUSR1", "SIGUSR2")
_IGNORED: Final = _known("SIGALRM", "SIGVTALRM", "SIGPROF", "SIGIO", "SIGSTKFLT", "SIGPIPE", "SIGXFSZ")
_REALTIME: Final = range(getattr(signal, "SIGRTMIN", 0), getattr(signal, "SIGRTMAX", -1) + 1)


def ignore_strays() -> None:
    """From here on no signal ends the process that does not mean to. For the very start of it.

    A handler that somebody has set, such as a profiler, stays.
    """
    for number in (signal.SIGHUP, *_NOTED, *_IGNORED, *_REALTIME):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.SIG_IGN)


def handle(loop: asyncio.AbstractEventLoop, end: Callable[[bool], None], reload: Callable[[], None]) -> None:
    """Call ``end(insisted)`` and ``reload()`` from ``loop``, while it lives, when signals ask for it.

    ``insisted``: SIGINT came after another signal that ends the node. A repeated SIGTERM says nothing new: supervisors
    send it more than once.
    """
    asked = False

    def ending(number: signal.Signals) -> None:
        nonlocal asked
        end(asked and number == signal.SIGINT)
        asked = True

    def on(number: signal.Signals, call: Callable[..., None], *arguments: object) -> None:
        def hear(*_: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(call, *arguments)

        # Not the loop's own handlers: while it removes one, the signal would end the process.
        signal.signal(number, hear)

    for number in _END:
        on(number, ending, number)
    on(signal.SIGHUP, reload)
    for number in _NOTED:
        on(number, log.info, "%s: ignored", number.name)


def ignore() -> None:
    """The process is shutting down gracefully: a signal that comes now must not kill it."""
    for number in (*_END, signal.SIGHUP, *_NOTED):
        signal.signal(number, signal.SIG_IGN)
