"""An event loop in a thread of its own, for callers in other threads, that ends in order whoever ends it and when."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, Final, TypeVar

from raftkv.client.process import keep_after_fork
from raftkv.clock import heard
from raftkv.errors import OutcomeUnknown, UsageError

T = TypeVar("T")

_EVENTS: Final = "PollerCompletionQueue._handle_events"
"""The callback in which gRPC passes events on."""

_PATIENCE: Final = 2.0
"""Seconds for calls under way to end by themselves, as their client was closed."""


class Background:
    """Runs coroutines until :meth:`end`; then awaits ``last``, lets what is under way end, and ends its thread.

    The thread is a daemon and knows only this object, not the one that uses it. Raises UsageError if there can be no
    further thread, because the interpreter ends.
    """

    def __init__(self, name: str, last: Callable[[], Awaitable[None]]) -> None:
        self._last = last
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_report)
        self._ending = asyncio.Event()
        # Reentrant: a signal's handler may call the client while its thread is giving something to the loop.
        self._gate = threading.RLock()
        self._over = False
        """The loop takes nothing more. Changed, and looked at, with the gate held."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        keep_after_fork(self._loop)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._loop.close()
            raise UsageError(f"no client can be made any more: {error}") from None

    @property
    def inside(self) -> bool:
        """Whether this is the loop's own thread."""
        return threading.current_thread() is self._thread

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``. If the caller is interrupted, cancels it.

        Raises UsageError if the loop has ended, OutcomeUnknown if it ended before ``work`` did.
        """
        with self._gate:
            if self._over:
                work.close()
                raise UsageError("the client is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            # Only the end of the loop cancels calls, and only those that went on too long after it.
            raise OutcomeUnknown("the client was closed before the call had ended") from None
        except BaseException:
            future.cancel()  # an interrupted caller no longer waits
            raise

    def start(self, make: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Run what ``make`` returns if the loop has not ended; nobody waits for it or hears how it went."""

        def begin() -> None:
            asyncio.ensure_future(make()).add_done_callback(heard)

        with self._gate:
            if not self._over:
                self._loop.call_soon_threadsafe(begin)

    def end(self) -> None:
        """Begin to end, from any thread, without waiting. May be called again."""
        with self._gate:
            if not self._over:
                self._loop.call_soon_threadsafe(self._ending.set)

    def join(self, timeout: float | None = None) -> None:
        """Wait until it has ended, at most ``timeout`` seconds; not at all in the loop's own thread."""
        if not self.inside:
            self._thread.join(timeout)

    def _run(self) -> None:
        loop = self._loop
        try:
            loop.run_until_complete(self._main())
        finally:
            with self._gate:
                self._over = True
            try:
                # What was given to the loop before that may still wait in it.
                loop.run_until_complete(_settle())
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                loop.close()

    async def _main(self) -> None:
        await self._ending.wait()
        await self._last()
        await _settle()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """As loops do, but for an event of gRPC's that comes too late for the loop of another client, which has ended.

    gRPC hands all events to whichever loop looks first, and that one passes them on. Of a call that was given up
    nobody learns when its last event has come, so no client can wait for it.
    """
    late = isinstance(context.get("exception"), RuntimeError) and str(context["exception"]) == "Event loop is closed"
    if not (late and _EVENTS in context.get("message", "")):
        loop.default_exception_handler(context)


async def _settle() -> None:
    """Let all other tasks end, and their results reach those who wait for them."""
    await asyncio.sleep(0)
    others = asyncio.all_tasks() - {task for task in (asyncio.current_task(),) if task is not None}
    if others:
        _, late = await asyncio.wait(others, timeout=_PATIENCE)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    await asyncio.sleep(0)
