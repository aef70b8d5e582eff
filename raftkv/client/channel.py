"""One Pipeline to one node: all calls of one turn of the loop share a message.

A writer task takes what has gathered, a reader task hands results out. When the stream is lost, operations that were
written have an unknown outcome; those that still waited here surely did not reach the node.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

from msgspec.structs import replace

from raftkv.api.batcher import LONGEST, Batcher
from raftkv.api.patience import SLOW, TELLING
from raftkv.api.pipeline import Batch
from raftkv.client.transport import TransportError
from raftkv.clock import wait
from raftkv.commands.registry import CLIENT_READS
from raftkv.commands.results import Result
from raftkv.errors import SETTLED, Code
from raftkv.limits import MAX_BATCH_BYTES, MAX_BATCH_OPS

if TYPE_CHECKING:
    from raftkv.client.call import Call
    from raftkv.client.session import ClientSession
    from raftkv.client.transport import Endpoint, Stream
    from raftkv.clock import Clock
    from raftkv.commands.registry import Piped

_SETTLED: Final = frozenset(int(code) for code in SETTLED)
_CONNECT_TIMEOUT: Final = 2.0
_SILENCE: Final = 2.0
"""Seconds over the node's budget after which a stream without any answer is taken for broken."""
_LAST_WORD: Final = 1.0
"""Seconds for a stream that was broken to end."""
_FULL: Final = 64
"""Operations over which a message is hardly cheaper for each of them."""
_DIVISIBLE: Final = 32
"""Reads under way on a client's only channel from which on they travel in two messages."""
_DIVISIBLE_WRITES: Final = 257
"""The same with writes among them: each message costs an entry and a sync too, which takes the nodes longer than the
work of some hundred writes. 256 are what a node executes in one turn."""
_SPACING: Final = 1.2
"""Of the time that answers take, between two messages with fewer operations than would be enough."""
_LONGEST_WRITES: Final = 2 * LONGEST
"""Seconds between those at most, while all are writes: nodes that are busy have an entry less to make and to sync for
each message less. Reads do not wait so long beside writes that a slow disk holds up."""
_NOT_SENT: Final = int(Code.UNAVAILABLE)
_UNKNOWN: Final = int(Code.UNKNOWN)
_NEVER: Final = 1 << 63


class Observer(Protocol):
    """Hears from channels."""

    def on_busy(self) -> None:
        """A channel without attempts under way got one: it has to be swept."""

    def on_slow(self, call: Call, seconds: float) -> None:
        """An attempt of ``call`` was executed, or begun, but took long."""

    def load(self) -> tuple[int, int]:
        """How many channels have attempts under way, and how many those have together."""

    def on_state(self, address: str, ok: bool) -> None:
        """Whether the node at ``address`` answers."""

    def on_epoch(self, epoch: int) -> None:
        """The epoch of a node's map, when it has risen."""

    def refusal(self, cluster_id: str) -> str | None:
        """Why a node of that cluster is refused, or None."""


class Channel:
    """The Pipeline to one address, opened when there is something to send and again after a loss.

    ``numbers`` names attempts, in rising order; all channels of a client share it.
    """

    def __init__(
        self,
        address: str,
        endpoint: Endpoint,
        clock: Clock,
        numbers: Iterator[int],
        observer: Observer,
    ) -> None:
        self.address = address
        self.endpoint = endpoint
        self._clock = clock
        self._next_number = numbers.__next__
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._new_future: Callable[[], asyncio.Future[Result]] = self._loop.create_future
        self._out: deque[int] = deque()
        self._pending: dict[int, Call] = {}
        self._given_up: dict[int, float] = {}
        """When attempts began that were given up and may still be answered."""
        self._wake: asyncio.Future[None] | None = None
        self._batcher = Batcher(clock, _SPACING, self._notify)
        self._stream: Stream | None = None
        self._lost: Result | None = None
        self._heard = 0.0
        self._budget = 0.0
        self._due = 0.0
        self._epoch = 0
        self._closed = False
        self._wrote = self._read = False
        """Whether the latest message carried writes, and whether reads."""
        self._writer: asyncio.Task[None] | None = asyncio.create_task(self._write_all())
        self._writer.add_done_callback(self._on_written)

    def send(self, call: Call, budget: float, now: float, patience: float) -> asyncio.Future[Result]:
        """Start an attempt; the future of its result. It is given up after ``patience`` seconds."""
        future = call.future = self._new_future()
        call.number = number = self._next_number()
        call.address = self.address
        call.budget = budget
        call.started = now
        call.limit = now + patience
        pending = self._pending
        if not pending:
            self._observer.on_busy()
        pending[number] = call
        self._out.append(number)
        wake = self._wake
        if wake is not None and len(self._out) >= self._batcher.enough:
            self._wake = None
            if not wake.done():
                wake.set_result(None)
        return future

    def give_up(self, call: Call) -> None:
        """Give up the attempt of ``call`` that is under way here, if there is one."""
        if self._pending.get(call.number) is call and not call.future.done():
            self._give_up(call.number, call)

    def sweep(self, now: float) -> bool:
        """Give up attempts whose time is over. Returns whether attempts are still under way."""
        oldest = now
        if self._given_up:
            self._given_up = {number: at for number, at in self._given_up.items() if number in self._pending}
        for number, call in list(self._pending.items()):
            if call.future.done():
                # Given up or cancelled; an answer may still come.
                if now > call.limit + _SILENCE:
                    del self._pending[number]
            elif call.number == number and now >= call.limit:
                self._give_up(number, call)
                oldest = min(oldest, call.started)
        if oldest < now and self._heard < oldest:
            # Not a word since those attempts began: others are better asked.
            self._observer.on_state(self.address, False)
        if self._due and now > self._due:
            # The node always answers in time: the connection is half open, or the node is frozen.
            self._due = 0.0
            if self._stream is not None:
                self._stream.cancel()
        return bool(self._pending or self._due)

    @property
    def under_way(self) -> int:
        """Attempts that have no result yet."""
        return len(self._pending)

    @property
    def idle(self) -> bool:
        """Nothing is under way."""
        return not self._pending

    async def close(self) -> None:
        """End at once; outstanding attempts end as lost."""
        if self._closed:
            return
        self._closed = True
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        self._fail_sent(Result(_UNKNOWN, detail="the client was closed"))
        self._fail_unsent(Result(_NOT_SENT, detail="the client was closed"))
        await self.endpoint.close()

    def _first_unsent(self) -> int:
        """Attempts with lower numbers may have reached the node: they leave in the order of their numbers."""
        return self._out[0] if self._out else _NEVER

    def _give_up(self, number: int, call: Call) -> None:
        if number < self._first_unsent():
            # It stays pending: a late answer is still the answer.
            self._given_up[number] = call.started
            result = Result(_UNKNOWN, detail=f"{self.address} did not answer")
        else:
            del self._pending[number]
            result = Result(_NOT_SENT, detail=f"{self.address} could not be reached")
        _finish(call, result)

    async def _write_all(self) -> None:
        while True:
            if not self._out:
                await self._sleep()
                continue
            try:
                stream = await self._open()
            except TransportError as error:
                self._observer.on_state(self.address, False)
                self._fail_unsent(error.result)
                continue
            self._stream, self._lost = stream, None
            self._heard = self._clock.now()
            self._observer.on_state(self.address, True)
            reader = asyncio.create_task(self._read_all(stream))
            try:
                await self._write_stream(stream)
            finally:
                self._batcher.close()
                self._stream = None
                self._due = 0.0
                stream.cancel()
                await self._end(reader)
            lost = self._lost or Result(_UNKNOWN, detail=f"the connection to {self.address} was lost")
            self._observer.on_state(self.address, False)
            self._fail_sent(lost if lost.code == _UNKNOWN else replace(lost, code=_UNKNOWN))
            self._fail_unsent(replace(lost, code=_NOT_SENT))

    def _on_written(self, _: object) -> None:
        # A cancelled task keeps its error, and the error all that was at work: the stream and gRPC's channel.
        self._writer = None

    async def _open(self) -> Stream:
        opening = asyncio.ensure_future(self.endpoint.open())
        try:
            if not await wait(self._clock, opening, _CONNECT_TIMEOUT):
                raise TransportError(Result(_NOT_SENT, detail=f"{self.address} did not answer"))
        finally:
            if not opening.done():
                opening.cancel()
                await asyncio.gather(opening, return_exceptions=True)
        stream = opening.result()
        refusal = self._observer.refusal(stream.cluster_id)
        if refusal is not None:
            stream.cancel()
            raise TransportError(Result(int(Code.WRONG_CLUSTER), detail=f"{self.address}: {refusal}"))
        return stream

    async def _write_stream(self, stream: Stream) -> None:
        while self._lost is None:
            if not self._out:
                await self._sleep()
                continue
            enough, most, longest = self._bounds()
            if self._batcher.waits(len(self._out), enough, longest):
                await self._sleep()
                continue
            batch = self._batch(most)
            if batch is None:
                continue
            try:
                self._batcher.sent()
                self._batcher.follow(batch.ids[0])
                await stream.write(batch)
            except TransportError as error:
                if self._lost is None:
                    self._lost = error.result
                return

    async def _read_all(self, stream: Stream) -> None:
        pending = self._pending
        try:
            while True:
                answers = await stream.read()
                if answers is None:
                    self._lost = Result(_UNKNOWN, detail=f"{self.address} ended the stream")
                    return
                self._heard = self._clock.now()
                self._due = self._heard + self._budget + _SILENCE if len(pending) > len(answers.ids) else 0.0
                followed = self._batcher.followed
                call = None
                for number, result in zip(answers.ids, answers.results, strict=True):
                    if number == followed:
                        self._batcher.answered()
                    call = pending.pop(number, None)
                    if call is None:
                        continue
                    # An answer to an earlier attempt counts if it settles the matter.
                    if call.number == number or result.code in _SETTLED:
                        future = call.future
                        if not future.done():
                            future.set_result(result)
                if call is not None and result.code in TELLING:
                    self._look_at_time(call, number)
                if self._batcher.enough > 1:
                    # Less is outstanding: what has gathered may be enough now.
                    self._notify()
                self._observer.on_state(self.address, True)
                if answers.map_epoch > self._epoch:
                    self._epoch = answers.map_epoch
                    self._observer.on_epoch(answers.map_epoch)
        except TransportError as error:
            self._lost = error.result
        finally:
            if self._lost is None:
                self._lost = Result(_UNKNOWN, detail=f"the connection to {self.address} was lost")
            self._notify()

    def _look_at_time(self, call: Call, number: int) -> None:
        """Attempt ``number`` of ``call`` was answered just now."""
        started = call.started if call.number == number else self._given_up.pop(number, self._heard)
        if self._heard - started > SLOW:
            self._observer.on_slow(call, self._heard - started)

    def _bounds(self) -> tuple[int, int, float]:
        """Operations that are enough for a message, those that it takes at most, and seconds that fewer may wait.

        If all that is under way went in one message to one node, client and node would wait for each other: with two
        halves both are at work. With several nodes, others are at work meanwhile.
        """
        channels, attempts = self._observer.load()
        under_way, most = len(self._pending), MAX_BATCH_OPS
        first = self._pending.get(self._out[0])
        writes = self._wrote or (first is not None and first.kind not in CLIENT_READS)
        reads = self._read or (first is not None and first.kind in CLIENT_READS)
        if channels == 1 and under_way >= (_DIVISIBLE_WRITES if writes else _DIVISIBLE):
            most = min((under_way + 1) // 2, most)
        return min(attempts // max(channels, 1), most, _FULL), most, LONGEST if reads else _LONGEST_WRITES

    def _batch(self, most: int) -> Batch | None:
        """The next message from what has gathered: bounded in bytes and operations, writes of one session only."""
        out = self._out
        pending = self._pending
        ids: list[int] = []
        commands: list[Piped] = []
        session: ClientSession | None = None
        size = first = 0
        reads = False
        budget = 0.0
        while out and len(ids) < most:
            number = out[0]
            call = pending.get(number)
            if call is None or call.future.done():
                # Given up or cancelled before it was sent.
                out.popleft()
                pending.pop(number, None)
                continue
            size += len(call.key) + call.payload
            if size > MAX_BATCH_BYTES and ids:
                break
            if call.session is None:
                reads = True
            elif call.session is not session:
                if session is not None:
                    break
                session = call.session
                first = session.first_incomplete()
            ids.append(number)
            commands.append(call.command(first))
            out.popleft()
            if call.budget > budget:
                budget = call.budget
        if not ids:
            return None
        self._wrote, self._read = session is not None, reads
        self._budget = budget
        if not self._due:
            self._due = self._clock.now() + budget + _SILENCE
        return Batch(ids, commands, max(1, int(budget * 1000)))

    def _fail_sent(self, result: Result) -> None:
        unsent = self._first_unsent()
        for number, call in [item for item in self._pending.items() if item[0] < unsent]:
            del self._pending[number]
            if call.number == number:
                _finish(call, result)

    def _fail_unsent(self, result: Result) -> None:
        out, self._out = self._out, deque()
        for number in out:
            call = self._pending.pop(number, None)
            if call is not None:
                _finish(call, result)

    async def _end(self, reader: asyncio.Task[None]) -> None:
        # It ends by itself, since the stream is broken, and what the stream still had to say has come then.
        if not await wait(self._clock, reader, _LAST_WORD):
            reader.cancel()
        for problem in await asyncio.gather(reader, return_exceptions=True):
            if isinstance(problem, Exception):
                self._loop.call_exception_handler({"message": "raftkv: reading results failed", "exception": problem})

    async def _sleep(self) -> None:
        self._wake = self._loop.create_future()
        await self._wake

    def _notify(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None and not wake.done():
            wake.set_result(None)


def _finish(call: Call, result: Result) -> None:
    if not call.future.done():
        call.future.set_result(result)
