"""An event loop on virtual time, shared by simulated processes that can be killed and paused.

Nothing waits: when nothing is left to do at one moment, time jumps to the next timer. Callbacks run in the order of
(time, insertion), so that a run depends on nothing but its inputs.

A callback belongs to the :class:`SimProcess` of its context. asyncio gives every callback, task and timer the context
of its maker, so what a process starts is its own without further ado.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import heapq
import sys
import warnings
from asyncio import events, format_helpers
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar, cast

T = TypeVar("T")

_LIVELOCK: Final = 1_000_000
"""Callbacks at one moment before it is taken for an endless loop."""

_owner: contextvars.ContextVar[SimProcess | None] = contextvars.ContextVar("process", default=None)


def current_process() -> SimProcess | None:
    """The process that the running callback belongs to; None for the simulator itself."""
    return _owner.get()


class Stuck(Exception):
    """Nothing is left to happen, or everything happens at one moment."""


@dataclass(frozen=True, slots=True)
class LoopProblem:
    """What a callback or a forgotten future raised."""

    time: float
    process: str
    message: str
    exception: BaseException | None


class SimProcess:
    """Callbacks that live, stand still and die together.

    A killed process stays in memory until the run ends: its coroutines must not be finalized meanwhile, since their
    ``finally`` blocks would act in the name of a dead process.
    """

    def __init__(self, loop: SimLoop, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.context = contextvars.Context()
        self.context.run(_owner.set, self)
        self.held: deque[_Handle] = deque()
        """What came due while it was paused, in order."""
        self._loop = loop
        loop.processes.append(self)

    def run(self, call: Callable[..., T], *args: Any) -> T:
        """Call in the name of this process, now."""
        if _owner.get() is self:
            return call(*args)
        return self.context.copy().run(call, *args)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task of this process."""
        return self.run(self._loop.create_task, coroutine)

    def kill(self) -> None:
        """Nothing of it ever runs again."""
        self.alive = False
        self.paused = False
        self.held.clear()

    def pause(self) -> None:
        """What comes due waits. The callback that is running now ends first."""
        if self.alive:
            self.paused = True

    def resume(self) -> None:
        """What waited runs now, in order, before anything newer."""
        self.paused = False
        self._loop.run_first(self.held)
        self.held.clear()


class _Handle:
    """A callback that is due; :class:`asyncio.TimerHandle` as far as asyncio's parts use it, at less cost."""

    __slots__ = ("args", "callback", "context", "is_cancelled", "when_due")

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context | None
    ) -> None:
        self.callback: Callable[..., object] | None = callback
        self.args = args
        self.context = contextvars.copy_context() if context is None else context
        self.is_cancelled = False
        self.when_due = when

    def cancel(self) -> None:
        self.is_cancelled = True
        self.callback, self.args = None, ()

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.when_due


class SimLoop(asyncio.BaseEventLoop):
    """See the module. ``processes``: all that ever were; ``problems``: what callbacks raised."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[SimProcess] = []
        self.problems: list[LoopProblem] = []
        self.callbacks = 0
        """Callbacks that have run."""
        self.now = 0.0
        """What :meth:`time` says."""
        self._count = 0
        self._over = False
        self._soon: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._prune_at = 256
        self.set_exception_handler(self._note)

    # -- time and callbacks

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> _Handle:
        handle = _Handle(self.now, callback, args, context)
        if not self._over:
            self._soon.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> _Handle:
        handle = _Handle(when, callback, args, context)
        if not self._over:
            if when <= self.now:
                self._soon.append(handle)
            else:
                self._count += 1
                heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> _Handle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def run_first(self, handles: deque[_Handle]) -> None:
        """Run these before everything else that is due."""
        self._soon.extendleft(reversed(handles))

    def _run_once(self) -> None:
        soon, owner = self._soon, _owner
        if not soon:
            self._advance()
        busy = 0
        while soon and not self._stopping:  # type: ignore[attr-defined]
            handle = soon.popleft()
            callback, context = handle.callback, handle.context
            if callback is None:
                continue
            process = context.get(owner)
            if process is not None and (process.paused or not process.alive):
                if process.alive:
                    process.held.append(handle)
                continue
            try:
                context.run(callback, *handle.args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as problem:  # noqa: BLE001 - as asyncio's own loops do
                self._raised(callback, handle.args, process, problem)
            busy += 1
            if busy > _LIVELOCK:
                raise Stuck(f"{busy} callbacks ran at {self.now} s: something keeps itself busy, as {callback!r}")
        self.callbacks += busy

    def _advance(self) -> None:
        timers = self._timers
        while timers and timers[0][2].is_cancelled:
            heapq.heappop(timers)
        if not timers:
            if self._stopping:  # type: ignore[attr-defined]
                return
            raise Stuck(f"nothing is left to happen at {self.now} s, and the run is not over")
        now = self.now = timers[0][0]
        while timers and timers[0][0] <= now:
            self._soon.append(heapq.heappop(timers)[2])

    # -- tasks and problems

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: object = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[T]:
        if self._over:
            coro.close()
            ended = self.create_future()
            ended.cancel()
            return cast("asyncio.Task[T]", ended)
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=str(name) if name else None, context=context)
        self._tasks.append(task)
        if len(self._tasks) > self._prune_at:
            self._tasks = [one for one in self._tasks if not one.done()]
            self._prune_at = max(256, 2 * len(self._tasks))
        return task

    def _raised(
        self, callback: Callable[..., object], args: tuple[Any, ...], owner: SimProcess | None, problem: BaseException
    ) -> None:
        where = format_helpers._format_callback_source(callback, args)
        self._add_problem(owner, f"Exception in callback {where}", problem)

    def _note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._add_problem(current_process(), str(context.get("message", "")), context.get("exception"))

    def _add_problem(self, owner: SimProcess | None, message: str, exception: BaseException | None) -> None:
        if not self._over:
            self.problems.append(LoopProblem(self.now, "" if owner is None else owner.name, message, exception))

    def run_in_executor(self, *_: object) -> NoReturn:
        raise NotImplementedError("threads have no place in a simulation")

    def bury(self) -> None:
        """End the run: close the coroutines that are left without letting them act, and let go of everything."""
        self._over = True
        self._soon.clear()
        self._timers.clear()
        tasks, self._tasks = self._tasks, []
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        events._set_running_loop(self)  # their finally blocks may ask for it
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for task in tasks:
                    if not task.done():
                        task._log_destroy_pending = False  # type: ignore[attr-defined]
                        _close(task)
                tasks.clear()
                for process in self.processes:
                    process.held.clear()
                gc.collect()
        finally:
            events._set_running_loop(None)
            sys.unraisablehook = hook
            self.close()


def _close(task: asyncio.Task[Any]) -> None:
    coroutine = task.get_coro()
    if isinstance(coroutine, Coroutine):
        try:
            coroutine.close()
        except BaseException:  # noqa: BLE001, S110 - whatever a dead coroutine raises, nobody is left to be told
            pass


def simulate(main: Callable[[SimLoop], Coroutine[Any, Any, T]]) -> T:
    """Run ``main`` on a loop of its own; what it left running ends with it.

    The garbage collector stands still meanwhile: when it runs is no part of the simulation.
    """
    loop = SimLoop()
    collecting = gc.isenabled()
    gc.disable()
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.bury()
        if collecting:
            gc.enable()
