"""Carries calls through their attempts: picks a node, sends, judges the result, waits, tries again."""

from __future__ import annotations

import asyncio
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from random import Random
from threading import get_ident
from typing import TYPE_CHECKING, Final, TypeVar

from raftkv.api.failures import error_of
from raftkv.api.patience import Patience
from raftkv.client.call import Call
from raftkv.client.channel import Channel
from raftkv.client.process import MADE_BEFORE, forks, keep_after_fork
from raftkv.client.retry import Attempts, NextStep, RetryPolicy, attempt_span, attempt_timeout, first_span
from raftkv.client.routing import Routing, View
from raftkv.client.session import Sessions
from raftkv.client.transport import TransportError
from raftkv.client.types import EndpointStatus
from raftkv.clock import heard, sleep, wait
from raftkv.commands.bounds import Mode
from raftkv.commands.registry import CLIENT_READS
from raftkv.commands.results import Result
from raftkv.errors import NO_USER, Code, RaftKVError, Unavailable, UsageError
from raftkv.limits import MAX_BATCH_OPS
from raftkv.v1 import kv_pb2
from shards.slots import slot_of

if TYPE_CHECKING:
    from raftkv.client.transport import Endpoint, Transport, WatchStream
    from raftkv.clock import Clock, Timer

T = TypeVar("T")

_GET: Final = kv_pb2.KIND_GET
_STALE: Final = int(Mode.STALE)
_MOVED: Final = int(Code.MOVED)
_SWEEP: Final = 0.02
_SHORT: Final = 10 * _SWEEP
"""Seconds below which a call has a timer of its own: the sweep would come too late for it."""
_ASKED_AT_ONCE: Final = 3
_MAP_TIMEOUT: Final = 1.0
_FINAL: Final = frozenset({Code.WRONG_VERSION, *NO_USER})
"""Refusals of the map that will not change while a call waits."""


class Engine:
    """The state of a client: routing, session, channels. All of it belongs to one event loop of one process."""

    def __init__(
        self, seeds: Sequence[str], transport: Transport, clock: Clock, rng: Random, policy: RetryPolicy
    ) -> None:
        self._transport = transport
        self._clock = clock
        self._rng = rng
        self._policy = policy
        self._routing = Routing(seeds, rng)
        self._channels: dict[str, Channel] = {}
        self._patience = Patience()
        self._sessions: Sessions | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._running: Callable[[], bool] = bool
        self._forks = forks()
        self._closed = False
        self._ending: asyncio.Future[None] | None = None
        self._numbers = count(1)
        self._cluster_id = ""
        self._wanted_epoch = 0
        self._refreshing: asyncio.Task[Result | None] | None = None
        self._closing: set[asyncio.Future[None]] = set()
        self._sweeper: Timer | None = None
        self._now = clock.now

    def check_usable(self) -> None:
        """Raises UsageError in a forked process, in another event loop and after :meth:`close`."""
        if forks() != self._forks:
            raise UsageError(MADE_BEFORE)
        if self._closed:
            raise UsageError("the client is closed")
        loop = get_running_loop()
        if loop is not self._loop:
            if self._loop is not None:
                raise UsageError("the client belongs to another event loop: make one client per loop")
            self._loop = loop
            self._thread = get_ident()
            self._running = loop.is_running
            keep_after_fork(self)

    async def run(self, call: Call, timeout: float, accept: int = 0) -> Result:
        """The result of ``call`` within ``timeout`` seconds, its code OK or ``accept``. Raises RaftKVError."""
        if timeout < _SHORT:
            return await self._run_short(call, timeout, accept)
        # A loop that runs in this thread is the running one; to ask for that costs a system call before Python 3.12.
        if self._closed or get_ident() != self._thread or not self._running() or forks() != self._forks:
            self.check_usable()
        now = self._now()
        call.deadline = now + timeout
        result: Result | None = None
        try:
            # The ordinary call: its leader is known, is asked and answers. All else takes the general way.
            slot = call.slot = slot_of(call.key, self._routing.slots)
            channel = self._channels.get(self._routing.route(slot))
            if channel is not None and call.mode != _STALE and not self._patience.needed:
                if call.kind not in CLIENT_READS:
                    self._begin(call)
                budget, patience = first_span(timeout)
                result = await channel.send(call, budget, now, patience)
                if not result.hint and (not result.code or result.code == accept):
                    return result
            return await self._run_on(call, timeout, accept, result)
        finally:
            if call.session is not None:
                call.session.end(call.seq)

    async def run_many(self, calls: Sequence[Call], timeout: float) -> list[Result | RaftKVError]:
        """As :meth:`run` for each of ``calls``, all within ``timeout`` seconds, MAX_BATCH_OPS at a time.

        Those of one node leave together: in one message, or two that overlap.
        """
        self.check_usable()
        deadline = self._now() + timeout
        if self._routing.view is None:
            await self._first_view(deadline, timeout, self._reading())
        found: list[Result | RaftKVError] = []
        for start in range(0, len(calls), MAX_BATCH_OPS):
            found += await self._run_part(calls[start : start + MAX_BATCH_OPS], deadline, timeout)
        return found

    async def _run_part(self, calls: Sequence[Call], deadline: float, timeout: float) -> list[Result | RaftKVError]:
        first, now = self._reading(), self._now()
        if now >= deadline:
            return [self._late(first, deadline, timeout)] * len(calls)
        sent: list[Call] = []
        timer = self._clock.call_later(deadline - now, lambda: self._expire_all(sent))
        results: list[Result | RaftKVError] = []
        span = None if self._patience.needed else attempt_span(timeout, deadline - now, 0)
        try:
            for call in calls:
                call.deadline = deadline
                if call.kind not in CLIENT_READS:
                    self._begin(call)
                slot = call.slot = slot_of(call.key, self._routing.slots)
                channel = self._channels.get(self._routing.route(slot))
                # As of run(): what is not ordinary takes the general way.
                if channel is not None and span is not None and call.mode != _STALE:
                    channel.send(call, span[0], now, span[1])
                else:
                    self._attempt(call, now, timeout, first)
                sent.append(call)
            for call in sent:
                results.append(await call.future)
            # The general way for what the ordinary one has not answered.
            rest = [at for at, one in enumerate(results) if isinstance(one, Result) and (one.code or one.hint)]
            answers = await asyncio.gather(
                *(self._run_on(sent[at], timeout, 0, results[at]) for at in rest),  # type: ignore[arg-type]
                return_exceptions=True,
            )
            for at, answer in zip(rest, answers, strict=True):
                if isinstance(answer, BaseException) and not isinstance(answer, RaftKVError):
                    raise answer
                results[at] = answer
        finally:
            timer.cancel()
            for call in sent:
                call.future.cancel()
            for call in calls:
                if call.session is not None:
                    call.session.end(call.seq)
        return results

    def _expire_all(self, calls: Sequence[Call]) -> None:
        for call in calls:
            self._expire(call)

    async def _run_short(self, call: Call, timeout: float, accept: int) -> Result:
        """As :meth:`run`, for a call that the sweep may find too late."""
        self.check_usable()
        call.deadline = self._now() + timeout
        timer = self._clock.call_later(timeout, partial(self._expire, call))
        try:
            return await self._run_on(call, timeout, accept, None)
        finally:
            timer.cancel()
            if call.session is not None:
                call.session.end(call.seq)

    def _expire(self, call: Call) -> None:
        channel = self._channels.get(call.address)
        if channel is not None:
            channel.give_up(call)

    async def _run_on(self, call: Call, timeout: float, accept: int, result: Result | None) -> Result:
        """As :meth:`run`, after a first attempt that ended in ``result`` or before any."""
        routing = self._routing
        progress = Attempts(call.kind not in CLIENT_READS, self._policy, resolve=call.resolve)
        if result is None:
            if routing.view is None:
                await self._first_view(call.deadline, timeout, progress)
            if call.kind not in CLIENT_READS:
                self._begin(call)
            result = await self._attempt(call, self._now(), timeout, progress)
        while True:
            if result.hint:
                call.hints += 1
                routing.hint(routing.slot(call.key), result.hint)
            if not result.code or result.code == accept:
                if not result.hint and call.mode != _STALE:
                    # Else the next call would go to the silent node first again.
                    routing.served(routing.slot(call.key), call.address)
                return result
            now = await self._after(call, result, progress, call.deadline, timeout)
            if result.code not in (Code.NOT_LEADER, Code.MOVED):
                progress.fail(call.address)
            call.attempts += 1
            result = await self._attempt(call, now, timeout, progress)

    def _attempt(self, call: Call, now: float, timeout: float, progress: Attempts) -> asyncio.Future[Result]:
        slot, stale = self._routing.slot(call.key), call.mode == _STALE
        call.slot = slot
        address = self._routing.pick(slot, now, stale, progress.failed)
        needed = 0.0 if stale else self._patience.of(self._routing.group(slot), now)
        budget, patience = attempt_span(timeout, call.deadline - now, progress.short, needed)
        return self._channel(address).send(call, budget, now, patience)

    async def page(self, request: kv_pb2.ScanRequest, timeout: float, call: Call | None = None) -> kv_pb2.ScanResponse:
        """A page of a scan, within ``timeout`` seconds. Its slots are those of :meth:`slots`.

        ``call``: notes the attempts.
        """

        def ask(endpoint: Endpoint, budget: float) -> Awaitable[kv_pb2.ScanResponse]:
            return endpoint.scan(request, budget)

        call = call or Call(_GET, request.start, request.consistency)
        page = await self._ask(call, request.slot, timeout, ask)
        if page.slots != request.slots:
            # Some of them are on their way, or somewhere else than this map says.
            self.refresh()
        return page

    async def cursor(self, request: kv_pb2.CursorRequest, timeout: float) -> kv_pb2.CursorResponse:
        """Numbers of slots of one group, within ``timeout`` seconds."""

        def ask(endpoint: Endpoint, budget: float) -> Awaitable[kv_pb2.CursorResponse]:
            return endpoint.cursor(request, budget)

        return await self._ask(Call(_GET, b"", request.consistency), request.slot, timeout, ask)

    async def watch(
        self, request: kv_pb2.WatchRequest, timeout: float
    ) -> tuple[WatchStream, kv_pb2.WatchResponse | None]:
        """A watch that has begun within ``timeout`` seconds, and its first message."""

        async def ask(endpoint: Endpoint, budget: float) -> tuple[WatchStream, kv_pb2.WatchResponse | None]:
            stream = endpoint.watch(request)
            first = asyncio.ensure_future(stream.read())
            first.add_done_callback(heard)
            try:
                if not await wait(self._clock, first, budget):
                    raise TransportError(Result(int(Code.UNKNOWN), detail="the node did not answer"))
                found = stream, first.result()
            except BaseException:
                stream.cancel()
                raise
            finally:
                first.cancel()
            return found

        return await self._ask(Call(_GET, b""), request.places[0].slot, timeout, ask)

    async def _ask(self, call: Call, slot: int, timeout: float, ask: Callable[[Endpoint, float], Awaitable[T]]) -> T:
        """What a node that serves ``slot`` answers to a question that is no operation. ``call``: notes the attempts."""
        self.check_usable()
        progress = self._reading()
        now = self._clock.now()
        deadline = now + timeout
        while True:
            address = self._routing.pick(slot, now, call.mode == _STALE, progress.failed)
            call.address, call.started, call.budget = (
                address,
                now,
                attempt_timeout(timeout, deadline - now, progress.short),
            )
            call.limit = now + call.budget
            try:
                return await ask(self._channel(address).endpoint, call.budget)
            except TransportError as error:
                progress.fail(address)
                if error.result.hint:
                    call.hints += 1
                    self._routing.hint(slot, error.result.hint)
                elif error.result.code == Code.UNKNOWN:
                    self._routing.failed(address, self._clock.now())
                now = await self._after(call, error.result, progress, deadline, timeout)
                call.attempts += 1

    @property
    def cluster_id(self) -> str:
        """Of the cluster that it speaks to; empty before :meth:`slots`."""
        return self._cluster_id

    def owners(self) -> tuple[int, ...]:
        """By slot, the group that has it as far as is known; needs :meth:`slots`."""
        assert self._routing.view is not None
        return self._routing.view.owners

    def by_group(self, slots: Iterable[int]) -> dict[int, list[int]]:
        """These slots by group, both ascending."""
        owners, found = self.owners(), dict[int, list[int]]()
        for slot in sorted(slots):
            found.setdefault(owners[slot], []).append(slot)
        return dict(sorted(found.items()))

    async def slots(self, timeout: float) -> int:
        """Number of slots of the cluster."""
        self.check_usable()
        if self._routing.view is None:
            await self._first_view(self._clock.now() + timeout, timeout, self._reading())
        assert self._routing.view is not None
        return self._routing.view.slots

    async def status(self, timeout: float) -> list[EndpointStatus]:
        """As AsyncClient.status."""
        self.check_usable()
        self.refresh()
        deadline = self._clock.now() + timeout
        if self._refreshing is not None:
            await wait(self._clock, self._refreshing, min(_MAP_TIMEOUT, timeout / 2))
        left = deadline - self._clock.now()
        return list(await asyncio.gather(*(self._status_of(one, left) for one in self._routing.endpoints())))

    async def close(self) -> None:
        """End everything. Raises UsageError in a forked process or another loop."""
        if self._ending is None:
            if self._closed:
                return
            self.check_usable()
            self._closed = True
            self._ending = asyncio.ensure_future(self._end())
        # Whoever waits may be cancelled: that all ends is not.
        await asyncio.shield(self._ending)

    def abandon(self) -> bool:
        """End everything if nobody will, without waiting, from any thread. Whether it was left to this."""
        if self._closed or forks() != self._forks:
            return False
        if self._loop is None or self._loop.is_closed():
            self._closed = True
        else:
            with suppress(RuntimeError):  # closed just now
                self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self.close()))
        return True

    async def _end(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
            self._refreshing = None
        channels, self._channels = self._channels, {}
        await asyncio.gather(*(channel.close() for channel in channels.values()), *self._closing)

    def _begin(self, call: Call) -> None:
        if self._sessions is None:
            self._sessions = Sessions(int(self._clock.wall() * 1000), self._rng)
        call.session = self._sessions.current
        call.seq = call.session.begin()

    async def _after(self, call: Call, result: Result, progress: Attempts, deadline: float, timeout: float) -> float:
        """Prepare the next attempt after ``result``; the time then. Raises if there is none."""
        step = progress.judge(result)
        if self._closed:
            raise progress.closed_error()
        if step is NextStep.RAISE:
            raise progress.final_error(call, result)
        if result.code == _MOVED:
            self.refresh()
        if step is NextStep.RENEW:
            self._renew(call, progress)
        elif step is NextStep.RETRY:
            # A node that had nobody to ask would not have had with more time either: another is better asked.
            enough = call.limit if result.code == Code.UNAVAILABLE else call.started + call.budget
            progress.short += self._clock.now() >= enough
            delay = progress.delay(self._rng)
            if self._clock.now() + delay >= deadline:
                raise self._late(progress, deadline, timeout)
            await sleep(self._clock, delay)
            if self._closed:
                raise progress.closed_error()
        now = self._clock.now()
        if now >= deadline:
            raise self._late(progress, deadline, timeout)
        return now

    def _reading(self) -> Attempts:
        return Attempts(False, self._policy)

    def _late(self, progress: Attempts, deadline: float, timeout: float) -> RaftKVError:
        return progress.deadline_error(timeout - (deadline - self._clock.now()), timeout)

    def _renew(self, call: Call, progress: Attempts) -> None:
        assert self._sessions is not None
        assert call.session is not None
        call.session.end(call.seq)
        assert progress.last is not None
        call.session = self._sessions.renew(call.session, progress.last.new_id_ms, progress.renewals - 1)
        call.seq = call.session.begin()

    def _channel(self, address: str) -> Channel:
        channel = self._channels.get(address)
        if channel is None:
            if self._closed:
                raise UsageError("the client was closed")
            endpoint = self._transport.endpoint(address)
            channel = Channel(address, endpoint, self._clock, self._numbers, self)
            self._channels[address] = channel
        return channel

    def load(self) -> tuple[int, int]:
        """See :class:`raftkv.client.channel.Observer`."""
        busy = [channel.under_way for channel in self._channels.values() if not channel.idle]
        return len(busy), sum(busy)

    def on_busy(self) -> None:
        """A channel without attempts under way got one."""
        if self._sweeper is None:
            self._sweeper = self._clock.call_later(_SWEEP, self._sweep)

    def on_slow(self, call: Call, seconds: float) -> None:
        """See :class:`raftkv.client.channel.Observer`."""
        if call.mode != _STALE:
            self._patience.saw(self._routing.group(self._routing.slot(call.key)), seconds, self._now())

    def on_state(self, address: str, ok: bool) -> None:
        """Whether the node at ``address`` answers."""
        if ok:
            self._routing.succeeded(address)
        elif not self._closed:
            self._routing.failed(address, self._clock.now())
            self.refresh()

    def on_epoch(self, epoch: int) -> None:
        """The epoch of a node's map."""
        view = self._routing.view
        if view is None or epoch > view.epoch:
            self._wanted_epoch = max(self._wanted_epoch, epoch)
            self.refresh()

    def refusal(self, cluster_id: str) -> str | None:
        """Why a node of that cluster is refused, or None."""
        if not self._cluster_id or cluster_id == self._cluster_id:
            return None
        return f"a node of cluster {cluster_id}; this client speaks to {self._cluster_id}"

    def _sweep(self) -> None:
        self._sweeper = None
        if self._closed:
            return
        now = self._clock.now()
        busy = [channel.sweep(now) for channel in self._channels.values()]
        if any(busy):
            self._sweeper = self._clock.call_later(_SWEEP, self._sweep)

    async def _first_view(self, deadline: float, timeout: float, progress: Attempts) -> None:
        while self._routing.view is None:
            self.refresh()
            refreshing = self._refreshing
            assert refreshing is not None
            if not await wait(self._clock, refreshing, deadline - self._clock.now()):
                raise self._late(progress, deadline, timeout)
            failure = None if refreshing.cancelled() else refreshing.result()
            if self._closed:
                raise progress.closed_error()
            if failure is not None and self._routing.view is None:
                await self._after_no_view(failure, deadline, timeout, progress)

    async def _after_no_view(self, failure: Result, deadline: float, timeout: float, progress: Attempts) -> None:
        if failure.code in _FINAL:
            raise error_of(failure)
        progress.last = failure
        progress.attempts += 1
        if progress.over(Code.UNAVAILABLE):
            raise Unavailable(f"no node was reached: {failure.detail}")
        delay = progress.delay(self._rng)
        if self._clock.now() + delay >= deadline:
            raise self._late(progress, deadline, timeout)
        await sleep(self._clock, delay)
        self.check_usable()

    def refresh(self) -> None:
        """Fetch the map, unless that is under way."""
        if (self._refreshing is None or self._refreshing.done()) and not self._closed:
            self._refreshing = get_running_loop().create_task(self._fetch_view())

    async def _fetch_view(self) -> Result | None:
        """Ask some endpoints for their maps until one of them helps; None if so, else the last failure."""
        failure: Result | None = None
        candidates = self._routing.candidates(self._clock.now())
        for start in range(0, len(candidates), _ASKED_AT_ONCE):
            asked = candidates[start : start + _ASKED_AT_ONCE]
            # Lists, since sets of tasks have no order that a simulation could repeat.
            asks = [asyncio.create_task(self._view_of(address)) for address in asked]
            try:
                while asks:
                    done, _ = await asyncio.wait(asks, return_when=asyncio.FIRST_COMPLETED)
                    answered, asks = [t for t in asks if t in done], [t for t in asks if t not in done]
                    for task in answered:
                        answer = task.result()
                        if isinstance(answer, Result):
                            failure = answer if failure is None or failure.code not in _FINAL else failure
                        elif self._install(answer):
                            return None
            finally:
                for task in asks:
                    task.cancel()
                await asyncio.gather(*asks, return_exceptions=True)
        return failure

    async def _view_of(self, address: str) -> View | Result:
        try:
            view = await self._channel(address).endpoint.view(_MAP_TIMEOUT)
        except TransportError as error:
            self._routing.failed(address, self._clock.now())
            return error.result
        refusal = self.refusal(view.cluster_id)
        if refusal is not None:
            return Result(int(Code.WRONG_CLUSTER), detail=f"{address}: {refusal}")
        return view

    def _install(self, view: View) -> bool:
        """Whether ``view`` is as new as the epoch that was heard of."""
        if self.refusal(view.cluster_id) is not None:
            return False
        self._cluster_id = view.cluster_id
        self._routing.install(view)
        self._prune()
        return view.epoch >= self._wanted_epoch

    def _prune(self) -> None:
        """Close idle channels to addresses that nobody names any more."""
        named = self._routing.endpoints()
        for address in [one for one in self._channels if one not in named]:
            if self._channels[address].idle:
                closing = asyncio.ensure_future(self._channels.pop(address).close())
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)

    async def _status_of(self, address: str, timeout: float) -> EndpointStatus:
        try:
            status = await self._channel(address).endpoint.status(timeout)
        except TransportError as error:
            return EndpointStatus(address, None, error.result.detail)
        refusal = self.refusal(status.cluster_id)
        if refusal is not None:
            return EndpointStatus(address, None, refusal)
        return EndpointStatus(address, status)
