"""Transactions of clients: checks and operations are gathered, then sent as one command."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Generic, Self

from raftkv.client.arguments import delta_of, encode_key, expect_of, ttl_ms_of
from raftkv.client.types import Record, TransactionResult, WriteResult
from raftkv.client.values import Decode, Encode
from raftkv.codecs import W
from raftkv.commands.results import Result, TransactionAnswer
from raftkv.commands.transactions import AnyStep, Check, DeleteStep, GetStep, IncrementStep, PutStep, Transact
from raftkv.errors import InvalidArgument, UsageError


class TransactionBuilder(Generic[W]):
    """What :class:`AsyncTransaction` and :class:`Transaction` share. Methods return the transaction itself.

    ``checks``, ``steps``, ``instead``: what was asked for; the last is done if a check does not hold.
    """

    def __init__(self, encode: Encode) -> None:
        self.encode = encode
        self.checks: list[Check] = []
        self.steps: list[AnyStep] = []
        self.instead: list[AnyStep] = []
        self._steps = self.steps
        self._sent = False

    def check(
        self,
        key: bytes | str,
        *,
        version: int | None = None,
        value: W | None = None,
        absent: bool = False,
    ) -> Self:
        """Only if the record of ``key`` has this version, or this value, or if there is none: one of the three.

        >>> await kv.put("{order}state", "open")
        WriteResult(version=1)
        >>> await kv.txn().check("{order}state", value="open").put("{order}state", "paid").commit()
        TransactionResult(succeeded=True, results=(WriteResult(version=2),), number=2)
        >>> bool(await kv.txn().check("{order}state", version=1).delete("{order}state").commit())
        False
        """
        if (version is not None) + (value is not None) + bool(absent) != 1:
            raise InvalidArgument("a check names a version, a value or absent=True: one of them")
        if self._steps is self.instead:
            raise InvalidArgument("checks stand before otherwise()")
        name = encode_key(key)
        if value is not None:
            self.checks.append(Check(name, 0, self.encode(value)))
        else:
            self.checks.append(Check(name, expect_of(0 if absent else version)))
        return self

    def put(self, key: bytes | str, value: W, *, ttl: float | None = None) -> Self:
        """Write a record. ``ttl``: seconds until it expires.

        >>> await kv.txn().put("{order}state", "open").put("{order}by", "Ada", ttl=3600).commit()
        TransactionResult(succeeded=True, results=(WriteResult(version=1), WriteResult(version=2)), number=2)
        """
        self._steps.append(PutStep(encode_key(key), self.encode(value), ttl_ms_of(ttl)))
        return self

    def delete(self, key: bytes | str) -> Self:
        """Remove a record, if there is one; its result says whether there was.

        >>> (await kv.txn().put("{order}state", "open").delete("{order}by").commit()).results
        (WriteResult(version=1), False)
        """
        self._steps.append(DeleteStep(encode_key(key)))
        return self

    def incr(self, key: bytes | str, delta: int = 1, *, ttl: float | None = None) -> Self:
        """Add to a counter, as :meth:`raftkv.AsyncClient.incr`; its result is the counter.

        >>> (await kv.txn().incr("{order}items").incr("{order}cents", 995).commit()).results
        (1, 995)
        """
        self._steps.append(IncrementStep(encode_key(key), delta_of(delta), ttl_ms_of(ttl)))
        return self

    def get(self, key: bytes | str) -> Self:
        """Read a record, as it is after the operations that stand before this one.

        >>> (await kv.txn().incr("{order}items").get("{order}items").get("{order}by").commit()).results
        (1, Record(key=b'{order}items', value=b'1', version=1, expires_at=None), None)
        """
        self._steps.append(GetStep(encode_key(key)))
        return self

    def otherwise(self) -> Self:
        """What is added from here on is done instead if a check does not hold.

        >>> txn = kv.txn().check("{order}by", absent=True).put("{order}by", "Ada").otherwise().get("{order}by")
        >>> await txn.commit()
        TransactionResult(succeeded=True, results=(WriteResult(version=1),), number=1)
        """
        if self._steps is self.instead:
            raise InvalidArgument("otherwise() stands once in a transaction")
        self._steps = self.instead
        return self

    def take(self, slots: int) -> Transact:
        """The command, once: it is to be sent. Raises what a node would refuse it with."""
        if self._sent:
            raise UsageError("the transaction was committed already: make another one")
        command = Transact.made(self.checks, self.steps, self.instead, slots)
        self._sent = True
        return command

    def result(self, result: Result, wall: float, decode: Decode | None) -> TransactionResult:
        """What the caller gets; ``wall``: Unix time in seconds. Raises CodecError."""
        answer = result.answer
        assert isinstance(answer, TransactionAnswer)
        steps = self.steps if answer.succeeded else self.instead
        told = [_told(step, *row, wall, decode) for step, row in zip(steps, answer.results, strict=True)]
        return TransactionResult(answer.succeeded, tuple(told), answer.number)


def _told(step: AnyStep, version: int, value: bytes | None, ttl: int, wall: float, decode: Decode | None) -> Any:
    kind = type(step)
    if kind is PutStep:
        return WriteResult(version)
    if kind is DeleteStep:
        return version > 0
    if kind is IncrementStep:
        return int(value or b"0")
    if not version:
        return None
    read = value or b""
    return Record(
        step.key, read if decode is None else decode(step.key, read), version, None if ttl < 0 else wall + ttl / 1000
    )


class AsyncTransaction(TransactionBuilder[W]):
    """A transaction within a slot: made by :meth:`raftkv.AsyncClient.txn`, gathered, committed once."""

    def __init__(
        self,
        send: Callable[[TransactionBuilder[W], float | None, bool], Coroutine[Any, Any, TransactionResult]],
        encode: Encode,
    ) -> None:
        super().__init__(encode)
        self.send = send

    async def commit(self, *, timeout: float | None = None, resolve: bool = False) -> TransactionResult:
        """Do all of it, or nothing.

        Raises CrossSlot, before anything is sent, if the keys are of several slots; NotANumber, CounterOverflow or
        TooLarge if an operation cannot be done, and then none of them was. ``resolve`` as of
        :meth:`raftkv.AsyncClient.put`.

        >>> done = await kv.txn().incr("{order}items").commit(timeout=60.0, resolve=True)
        >>> done.succeeded, done.results, done.number
        (True, (1,), 1)
        """
        return await self.send(self, timeout, resolve)


class Transaction(TransactionBuilder[W]):
    """As :class:`AsyncTransaction`, without await; made by :meth:`raftkv.Client.txn`."""

    def __init__(
        self, send: Callable[[TransactionBuilder[W], float | None, bool], TransactionResult], encode: Encode
    ) -> None:
        super().__init__(encode)
        self._send = send

    def commit(self, *, timeout: float | None = None, resolve: bool = False) -> TransactionResult:
        """See AsyncTransaction.commit."""
        return self._send(self, timeout, resolve)
