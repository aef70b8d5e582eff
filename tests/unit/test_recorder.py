"""Guarantee: whatever a client is told about an operation, the history says exactly that and never more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, cast

import pytest

from faults.check.history import OPEN_END, History, Kind, Operation, Outcome
from faults.check.numbered import Asked
from faults.workloads.recorder import Recorder
from raftkv import AsyncClient
from raftkv.client.arguments import encode_value
from raftkv.client.transaction import AsyncTransaction
from raftkv.client.types import CasResult, Record, TransactionResult, WriteResult
from raftkv.commands.transactions import Check, DeleteStep, GetStep, IncrementStep, PutStep
from raftkv.errors import (
    ConditionFailed,
    ConfigError,
    DeadlineExceeded,
    InvalidArgument,
    NoSpace,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
    SessionExpired,
    TooLarge,
    Unavailable,
    UsageError,
    WrongCluster,
)

BEGAN = 10.0
TOOK = 2.5

Call = Callable[[Recorder], Coroutine[Any, Any, Operation]]

CALLS: dict[Kind, Call] = {
    Kind.GET: lambda kv: kv.get("k"),
    Kind.PUT: lambda kv: kv.put("k", "new"),
    Kind.DELETE: lambda kv: kv.delete("k"),
    Kind.CAS: lambda kv: kv.cas("k", "old", "new"),
    Kind.INCR: lambda kv: kv.incr("k"),
    Kind.TXN: lambda kv: kv.transact("k", TXN),
}
WRITES = [Kind.PUT, Kind.DELETE, Kind.CAS, Kind.INCR, Kind.TXN]
TXN: Asked = Asked(
    [["a", "1"], ["b", None]], [["put", "c", "2"], ["incr", "n", -3], ["get", "a", None]], [["delete", "c", None]]
)


class Scripted:
    """Stands for AsyncClient: every call takes some time and ends as told, if at all."""

    def __init__(self, answer: Any = None, *, fails: BaseException | None = None, hangs: bool = False) -> None:
        self.now = BEGAN
        self.calls: list[tuple[Any, ...]] = []
        self.cancelled = 0
        self._answer = answer
        self._fails = fails
        self._hangs = hangs

    async def get(self, key: str, *, consistency: str, timeout: float | None) -> Any:
        return await self._end("get", key, consistency, timeout)

    async def put(self, key: str, value: str, *, ttl: float | None, if_version: int | None) -> Any:
        return await self._end("put", key, value, ttl, if_version)

    async def delete(self, key: str, *, if_version: int | None) -> Any:
        return await self._end("delete", key, if_version)

    async def cas(self, key: str, expected: str | None, value: str, *, ttl: float | None) -> Any:
        return await self._end("cas", key, expected, value, ttl)

    async def incr(self, key: str, *, resolve: bool) -> Any:
        return await self._end("incr", key)

    def txn(self) -> AsyncTransaction:
        return AsyncTransaction(lambda txn, *_: self._end("txn", txn.checks, txn.steps, txn.instead), encode_value)

    async def scan(self, **call: Any) -> AsyncGenerator[Record, None]:
        for record in await self._end("scan", *call.items()):
            yield record

    async def _end(self, *call: Any) -> Any:
        self.calls.append(call)
        try:
            if self._hangs:
                await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.now += TOOK
        if self._fails is not None:
            raise self._fails
        return self._answer


class Desk:
    """A recorder of client c1 at work on a scripted client."""

    def __init__(self, client: Scripted, patience: Callable[[], float | None] = lambda: None) -> None:
        self.client = client
        self.history = History()
        self.recorder = Recorder(cast(AsyncClient, client), "c1", self.history, lambda: client.now, patience)

    def run(self, call: Call) -> Operation:
        """The operation as the history has it."""
        returned = asyncio.run(call(self.recorder))
        assert self.history.operations == [returned]
        assert self.history.operations[0] is returned
        assert returned.answered == BEGAN + TOOK, "the call has returned, whatever it said"
        return returned

    def raises(self, call: Call, error: type[BaseException]) -> Operation:
        """The operation of a call that raised ``error``."""
        with pytest.raises(error):
            asyncio.run(call(self.recorder))
        (left,) = self.history.operations
        return left


def asked(kind: Kind, **more: Any) -> Operation:
    """An operation of c1 on k that was answered in time, for comparison."""
    one = Operation(0, "c1", kind, "k", BEGAN, ended=BEGAN + TOOK, answered=BEGAN + TOOK, outcome=Outcome.OK)
    for name, value in more.items():
        setattr(one, name, value)
    return one


# -- answers


def test_a_get_says_what_it_found() -> None:
    desk = Desk(Scripted(Record(b"k", b"v", 7)))
    assert desk.run(CALLS[Kind.GET]) == asked(Kind.GET, found="v", version=7)
    assert desk.client.calls == [("get", "k", "linearizable", None)]


def test_a_get_that_found_nothing_says_version_0() -> None:
    assert Desk(Scripted(None)).run(CALLS[Kind.GET]) == asked(Kind.GET, found=None, version=0)


def test_a_get_of_an_empty_value_is_no_get_of_nothing() -> None:
    assert Desk(Scripted(Record(b"k", b"", 3))).run(CALLS[Kind.GET]) == asked(Kind.GET, found="", version=3)


def test_only_stale_reads_are_marked_as_such() -> None:
    """The checker leaves stale reads out: a quorum read among them would go unchecked."""
    desk = Desk(Scripted(Record(b"k", b"v", 7)))
    assert desk.run(lambda kv: kv.get("k", "stale")) == asked(Kind.GET, found="v", version=7, stale=True)
    desk = Desk(Scripted(Record(b"k", b"v", 7)))
    assert desk.run(lambda kv: kv.get("k", "quorum")) == asked(Kind.GET, found="v", version=7)
    assert desk.client.calls == [("get", "k", "quorum", None)]


def test_a_put_says_what_it_wrote_and_the_version_it_got() -> None:
    desk = Desk(Scripted(WriteResult(4)))
    assert desk.run(CALLS[Kind.PUT]) == asked(Kind.PUT, value="new", done=True, version=4)
    assert desk.client.calls == [("put", "k", "new", None, None)]


def test_condition_and_time_to_live_of_a_put_reach_client_and_history() -> None:
    desk = Desk(Scripted(WriteResult(4)))
    done = desk.run(lambda kv: kv.put("k", "new", ttl=1.5, expect=3))
    assert done == asked(Kind.PUT, value="new", ttl=1.5, expect=3, done=True, version=4)
    assert desk.client.calls == [("put", "k", "new", 1.5, 3)]


def test_an_increment_says_what_it_counted() -> None:
    desk = Desk(Scripted(7))
    assert desk.run(CALLS[Kind.INCR]) == asked(Kind.INCR, done=True, found="7")
    assert desk.client.calls == [("incr", "k")]


def test_a_transaction_says_what_was_asked_and_told() -> None:
    told = TransactionResult(True, (WriteResult(8), -3, Record(b"ka", b"1", 2)), 9)
    desk = Desk(Scripted(told))
    done = desk.run(CALLS[Kind.TXN])
    assert done == asked(Kind.TXN, steps=TXN.text(), done=True, found='[null, -3, "1"]', version=9)
    assert Asked.of(done) == TXN
    checks = [Check(b"ka", value=b"1"), Check(b"kb")]
    steps = [PutStep(b"kc", b"2"), IncrementStep(b"kn", -3), GetStep(b"ka")]
    assert desk.client.calls == [("txn", checks, steps, [DeleteStep(b"kc")])]
    desk = Desk(Scripted(TransactionResult(False, (True,), 9)))
    assert desk.run(CALLS[Kind.TXN]) == asked(Kind.TXN, steps=TXN.text(), found="[true]", version=9)


@pytest.mark.parametrize("there", [True, False])
def test_a_delete_says_whether_there_was_a_record(there: bool) -> None:
    desk = Desk(Scripted(there))
    assert desk.run(lambda kv: kv.delete("k", expect=2)) == asked(Kind.DELETE, expect=2, done=there)
    assert desk.client.calls == [("delete", "k", 2)]


@pytest.mark.parametrize("swapped", [True, False])
def test_a_compare_and_swap_says_whether_it_was_done_and_the_version(swapped: bool) -> None:
    desk = Desk(Scripted(CasResult(swapped, 6)))
    done = desk.run(lambda kv: kv.cas("k", None, "new", ttl=0.5))
    assert done == asked(Kind.CAS, expected=None, value="new", ttl=0.5, done=swapped, version=6)
    assert desk.client.calls == [("cas", "k", None, "new", 0.5)]


# -- definite failures


@pytest.mark.parametrize("version", [0, 9])
def test_a_failed_condition_is_an_answer_that_tells_the_version_in_the_way(version: int) -> None:
    for call, expected in (
        (lambda kv: kv.put("k", "new", expect=3), asked(Kind.PUT, value="new", expect=3, version=version)),
        (lambda kv: kv.delete("k", expect=3), asked(Kind.DELETE, expect=3, version=version)),
    ):
        done = Desk(Scripted(fails=ConditionFailed("no", version))).run(call)
        assert (done, done.only_looks) == (expected, True)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize(
    "error", [NotApplied, Unavailable, Overloaded, NoSpace, InvalidArgument, TooLarge, WrongCluster, UsageError]
)
def test_an_operation_that_surely_did_not_happen_is_refused(kind: Kind, error: type[NotApplied]) -> None:
    done = Desk(Scripted(fails=error("why"))).run(CALLS[kind])
    assert (done.outcome, done.done, done.version, done.found) == (Outcome.REFUSED, False, None, None)
    assert done.error == f"{error.__name__}: why"
    assert done.ended == BEGAN + TOOK, "from then on it is sure"


# -- outcomes that nobody knows


@pytest.mark.parametrize("kind", WRITES)
@pytest.mark.parametrize("error", [OutcomeUnknown, DeadlineExceeded, SessionExpired])
def test_a_write_that_may_have_happened_stays_possible_for_ever(kind: Kind, error: type[OutcomeUnknown]) -> None:
    done = Desk(Scripted(fails=error("why"))).run(CALLS[kind])
    assert (done.outcome, done.done, done.version) == (Outcome.UNKNOWN, False, None)
    assert done.error == f"{error.__name__}: why"
    assert done.ended == OPEN_END


@pytest.mark.parametrize("error", [OutcomeUnknown, DeadlineExceeded, SessionExpired])
def test_a_read_never_has_an_unknown_outcome(error: type[OutcomeUnknown]) -> None:
    """A client that says so has a bug, which the history must not hide."""
    left = Desk(Scripted(fails=error("why"))).raises(CALLS[Kind.GET], error)
    assert (left.outcome, left.ended) == (Outcome.OPEN, OPEN_END)


@pytest.mark.parametrize("kind", WRITES)
def test_a_write_that_was_given_up_is_cancelled_and_may_have_happened(kind: Kind) -> None:
    desk = Desk(Scripted(hangs=True), lambda: 0.0)
    done = desk.run(CALLS[kind])
    assert desk.client.cancelled == 1
    assert (done.outcome, done.ended, done.done, done.version) == (Outcome.UNKNOWN, OPEN_END, False, None)
    assert done.error == "cancelled after 0.000 s"


def test_patience_is_drawn_anew_for_each_write_and_for_no_read() -> None:
    drawn: list[float] = []

    def patience() -> float:
        drawn.append(60.0)
        return drawn[-1]

    desk = Desk(Scripted(WriteResult(1)), patience)

    async def work() -> None:
        for number in range(3):
            assert (await desk.recorder.put("k", "new")).outcome is Outcome.OK
            assert len(drawn) == number + 1

    asyncio.run(work())
    reading = Desk(Scripted(Record(b"k", b"v", 1)), patience)
    reading.run(CALLS[Kind.GET])
    assert len(drawn) == 3


def test_a_process_that_ends_leaves_its_operation_open() -> None:
    """Being cancelled from outside is no answer: the write may happen, and the call never returned."""
    desk = Desk(Scripted(hangs=True), lambda: 60.0)

    async def work() -> None:
        writing = asyncio.create_task(desk.recorder.put("k", "new"))
        while not desk.client.calls:
            await asyncio.sleep(0)
        writing.cancel()
        await writing

    left = desk.raises(lambda _: work(), asyncio.CancelledError)  # type: ignore[arg-type,return-value]
    assert (left.outcome, left.ended, left.answered) == (Outcome.OPEN, OPEN_END, OPEN_END)


# -- what is no outcome


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("error", [ValueError, OSError, ConfigError, KeyboardInterrupt])
def test_what_is_no_outcome_passes_through_and_leaves_the_operation_open(
    kind: Kind, error: type[BaseException]
) -> None:
    """A bug of the client ends the run; it must not pass for an outcome."""
    left = Desk(Scripted(fails=error("bug"))).raises(CALLS[kind], error)
    assert (left.outcome, left.ended, left.answered) == (Outcome.OPEN, OPEN_END, OPEN_END)
    assert (left.kind, left.key, left.began) == (kind, "k", BEGAN)


# -- the history


def test_operations_are_numbered_in_the_order_in_which_they_begin() -> None:
    client = Scripted(hangs=True)
    history = History()
    now = lambda: client.now  # noqa: E731
    one, other = (Recorder(cast(AsyncClient, client), name, history, now, lambda: 0.0) for name in ("c1", "c2"))

    async def work() -> None:
        await asyncio.gather(one.put("a", "1"), other.put("b", "2"), one.delete("a"))

    asyncio.run(work())
    assert [(at.number, at.client, at.key) for at in history.operations] == [
        (0, "c1", "a"),
        (1, "c2", "b"),
        (2, "c1", "a"),
    ]
    assert history.count(Outcome.UNKNOWN) == 3


# -- several keys at one moment

KEYS = ("{k}0", "{k}1", "{k}2")


def look(client: Scripted, *keys: str) -> list[Operation]:
    """What the history has of one look at these keys."""
    desk = Desk(client)
    returned = asyncio.run(desk.recorder.look(keys))
    assert returned == desk.history.operations
    return returned


def test_a_look_is_a_get_of_each_key_at_one_moment() -> None:
    found = [Record(b"{k}0", b"a", 3), Record(b"{k}2", b"c", 5), Record(b"{k}9", b"z", 6)]
    client = Scripted(found)
    seen = look(client, *KEYS)
    assert client.calls == [("scan", ("prefix", "{k}"))]
    assert [(one.kind, one.key, one.found, one.version) for one in seen] == [
        (Kind.GET, "{k}0", "a", 3),
        (Kind.GET, "{k}1", None, 0),
        (Kind.GET, "{k}2", "c", 5),
    ]
    for one in seen:
        assert (one.outcome, one.began, one.ended, one.answered) == (Outcome.OK, BEGAN, BEGAN + TOOK, BEGAN + TOOK)


def test_a_look_that_was_refused_tells_nothing_of_any_key() -> None:
    for one in look(Scripted(fails=Unavailable("nobody")), *KEYS):
        assert (one.outcome, one.found, one.version) == (Outcome.REFUSED, None, None)
        assert one.error == "Unavailable: nobody"
        assert one.ended == one.answered == BEGAN + TOOK


def test_every_key_of_a_look_is_told_to_the_listener() -> None:
    class Listener:
        def __init__(self) -> None:
            self.told: list[tuple[str, str, Outcome]] = []

        def invoked(self, one: Operation) -> None:
            self.told.append(("invoked", one.key, one.outcome))

        def completed(self, one: Operation) -> None:
            self.told.append(("completed", one.key, one.outcome))

    client, listener = Scripted([]), Listener()
    recorder = Recorder(cast(AsyncClient, client), "c1", History(), lambda: client.now, listener=listener)
    asyncio.run(recorder.look(KEYS))
    assert sorted(listener.told) == sorted(
        [("invoked", key, Outcome.OPEN) for key in KEYS] + [("completed", key, Outcome.OK) for key in KEYS]
    )
