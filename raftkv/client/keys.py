"""The calls of the asyncio client on keys that they name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, cast

from raftkv.client.arguments import (
    check_timeout,
    delta_of,
    encode_key,
    encode_value,
    expect_of,
    items_of,
    keys_of,
    mode_of,
    ttl_ms_of,
)
from raftkv.client.batches import results_of
from raftkv.client.call import Call
from raftkv.client.transaction import AsyncTransaction, TransactionBuilder
from raftkv.client.types import (
    ABSENT,
    AppendResult,
    CasResult,
    Consistency,
    Record,
    TransactionResult,
    WriteResult,
)
from raftkv.client.values import Decode, Encode
from raftkv.codecs import V, W
from raftkv.commands.records import Cas, Delete
from raftkv.commands.results import Result
from raftkv.commands.updates import Append, CompareAndDelete, GetAndDelete, Increment, Touch
from raftkv.errors import Code, InvalidArgument, RaftKVError
from raftkv.v1 import kv_pb2

if TYPE_CHECKING:
    from raftkv.client.engine import Engine
    from raftkv.clock import Clock
    from raftkv.commands.registry import Piped

_GET: Final = kv_pb2.KIND_GET
_PUT: Final = kv_pb2.KIND_PUT
_CONDITION_FAILED: Final = int(Code.CONDITION_FAILED)
# A third of the time of calling the class.
_make_record: Final = cast("Callable[[tuple[Any, ...]], Record[Any]]", partial(tuple.__new__, Record))
_make_written: Final = cast("Callable[[tuple[int]], WriteResult]", partial(tuple.__new__, WriteResult))


class KeyCalls(Generic[W, V]):
    """Part of :class:`raftkv.AsyncClient`, whose constructor makes what they share."""

    _encode: Encode
    _decode: Decode | None

    _engine: Engine
    _timeout: float
    _clock: Clock

    async def get(
        self, key: bytes | str, *, consistency: Consistency = "linearizable", timeout: float | None = None
    ) -> Record[V] | None:
        """The record of ``key``, or None.

        >>> await kv.put("user:1", "Ada")
        WriteResult(version=1)
        >>> await kv.get("user:1")
        Record(key=b'user:1', value=b'Ada', version=1, expires_at=None)
        >>> await kv.get("user:2") is None
        True
        """
        name = encode_key(key)
        call = Call(_GET, name, 0 if consistency == "linearizable" else mode_of(consistency))
        result = await self._engine.run(call, self._timeout if timeout is None else check_timeout(timeout))
        if not result.version:
            return None
        value: Any = result.value or b""
        if self._decode is not None:
            value = self._decode(name, value)
        expires_at = None if result.ttl < 0 else self._clock.wall() + result.ttl / 1000
        return _make_record((name, value, result.version, expires_at))

    async def put(
        self,
        key: bytes | str,
        value: W,
        *,
        ttl: float | None = None,
        if_version: int | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> WriteResult:
        """Write a record.

        ``ttl``: seconds until it expires, never earlier. ``if_version``: only if the record has this version, ABSENT:
        only if there is none; raises ConditionFailed otherwise. ``resolve``, of all writes: once an attempt may have
        taken effect, no refusal ends the call before its time is up; it is asked again under its request id, under
        which nothing happens twice, until the cluster says what became of it.

        >>> written = await kv.put("session:7", "active", ttl=3600)
        >>> await kv.put("session:7", "idle", if_version=written.version)
        WriteResult(version=2)
        """
        call = Call(_PUT, encode_key(key))
        call.value = data = self._encode(value)
        call.payload = len(data)
        if ttl is not None:
            call.ttl_ms = ttl_ms_of(ttl)
        if if_version is not None:
            call.expect = expect_of(if_version)
        if resolve:
            call.resolve = True
        result = await self._engine.run(call, self._timeout if timeout is None else check_timeout(timeout))
        return _make_written((result.version,))

    async def create(
        self,
        key: bytes | str,
        value: W,
        *,
        ttl: float | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> WriteResult:
        """Write a record if there is none; raises ConditionFailed if there is.

        >>> await kv.create("lock", "me")
        WriteResult(version=1)
        >>> await kv.create("lock", "you")
        Traceback (most recent call last):
        raftkv.errors.ConditionFailed: key 'lock': expected no record, found version 1
        """
        return await self.put(key, value, ttl=ttl, if_version=ABSENT, timeout=timeout, resolve=resolve)

    async def update(
        self,
        key: bytes | str,
        value: W,
        *,
        version: int,
        ttl: float | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> WriteResult:
        """Write a record that has this version; raises ConditionFailed if it has another one or there is none.

        Without ``ttl`` it does not expire any more.

        >>> created = await kv.create("config", "a")
        >>> await kv.update("config", "b", version=created.version)
        WriteResult(version=2)
        """
        if version == ABSENT:
            raise InvalidArgument("a record that is to be updated has a version: create() writes one that is absent")
        return await self.put(key, value, ttl=ttl, if_version=version, timeout=timeout, resolve=resolve)

    async def delete(
        self,
        key: bytes | str,
        *,
        if_version: int | None = None,
        if_value: W | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> bool:
        """Remove the record of ``key``; whether there was one.

        ``if_version``, ``if_value``: only if the record has this version or this value (one of the two); raises
        ConditionFailed otherwise.

        >>> await kv.put("lock", "me")
        WriteResult(version=1)
        >>> await kv.delete("lock", if_value="me")
        True
        >>> await kv.delete("lock")
        False
        """
        asked: Delete | CompareAndDelete
        if if_value is None:
            asked = Delete(0, encode_key(key), expect_of(if_version))
        elif if_version is None:
            asked = CompareAndDelete(0, encode_key(key), self._encode(if_value, "expected value"))
        else:
            raise InvalidArgument("if_version and if_value are mutually exclusive")
        return (await self._ask(asked, timeout, resolve=resolve)).version > 0

    async def cas(
        self,
        key: bytes | str,
        expected: W | None,
        value: W,
        *,
        ttl: float | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> CasResult:
        """Write ``value`` if the record's value is ``expected`` (None: if there is no record).

        The result is true if it was written, and tells the record's version in both cases.

        >>> await kv.cas("state", None, "new")
        CasResult(succeeded=True, version=1)
        >>> await kv.cas("state", "old", "done")
        CasResult(succeeded=False, version=1)
        """
        name, data = encode_key(key), self._encode(value)
        wanted = None if expected is None else self._encode(expected, "expected value")
        result = await self._ask(
            Cas(0, name, data, wanted, ttl_ms_of(ttl)), timeout, resolve=resolve, accept=_CONDITION_FAILED
        )
        return CasResult(not result.code, result.version)

    async def incr(
        self,
        key: bytes | str,
        delta: int = 1,
        *,
        ttl: float | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> int:
        """Add ``delta`` to a counter and return it; one that is absent counts as 0.

        A counter is a record whose value is a signed 64-bit integer as decimal text. ``ttl``: seconds until a counter
        that this call creates expires; one that exists keeps its own time. Counts once, however often it is retried.
        Raises NotANumber and CounterOverflow, and nothing is changed then.

        >>> await kv.incr("visits")
        1
        >>> await kv.incr("visits", 10)
        11
        >>> await kv.put("name", "Ada")
        WriteResult(version=1)
        >>> await kv.incr("name")
        Traceback (most recent call last):
        raftkv.errors.NotANumber: key 'name': the value is not a signed 64-bit integer as decimal text
        """
        result = await self._ask(
            Increment(0, encode_key(key), delta_of(delta), ttl_ms_of(ttl)), timeout, resolve=resolve
        )
        return int(result.value or b"0")

    async def append(
        self,
        key: bytes | str,
        value: bytes | str,
        *,
        ttl: float | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> AppendResult:
        """Add ``value`` to the end of the record's value; a record that is absent counts as empty.

        ``value`` is bytes, or str taken as UTF-8, whatever the client's codec.
        ``ttl``: seconds until a record that this call creates expires; one that exists keeps its own time. Raises
        TooLarge, and nothing is changed, if the whole would be over 1 MiB.

        >>> await kv.append("log", "one,")
        AppendResult(length=4, version=1)
        >>> await kv.append("log", "two,")
        AppendResult(length=8, version=2)
        """
        result = await self._ask(
            Append(0, encode_key(key), encode_value(value), ttl_ms_of(ttl)), timeout, resolve=resolve
        )
        return AppendResult(result.number, result.version)

    async def touch(
        self,
        key: bytes | str,
        ttl: float,
        *,
        if_version: int | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> bool:
        """Let a record live for ``ttl`` seconds from now on; whether there is one. Its version stays.

        ``if_version``: only if the record has this version; raises ConditionFailed otherwise.

        >>> mine = await kv.create("lease", "me", ttl=10)
        >>> await kv.touch("lease", 10, if_version=mine.version)
        True
        >>> await kv.touch("no such key", 10)
        False
        """
        if ttl is None:
            raise InvalidArgument("a TTL is missing: persist() lets a record not expire")
        return await self._touch(key, ttl_ms_of(ttl), if_version, timeout, resolve)

    async def persist(
        self, key: bytes | str, *, if_version: int | None = None, timeout: float | None = None, resolve: bool = False
    ) -> bool:
        """Let a record not expire; whether there is one. Its version stays. ``if_version`` as in :meth:`touch`.

        >>> await kv.put("draft", "text", ttl=60)
        WriteResult(version=1)
        >>> await kv.persist("draft")
        True
        >>> await kv.get("draft")
        Record(key=b'draft', value=b'text', version=1, expires_at=None)
        """
        return await self._touch(key, 0, if_version, timeout, resolve)

    async def _touch(
        self, key: bytes | str, ttl_ms: int, if_version: int | None, timeout: float | None, resolve: bool
    ) -> bool:
        result = await self._ask(Touch(0, encode_key(key), ttl_ms, expect_of(if_version)), timeout, resolve=resolve)
        return result.version > 0

    async def get_and_delete(
        self, key: bytes | str, *, timeout: float | None = None, resolve: bool = False
    ) -> Record[V] | None:
        """Remove a record and return it, None if there was none. Of several callers one gets it.

        >>> await kv.put("job:1", "send mail")
        WriteResult(version=1)
        >>> await kv.get_and_delete("job:1")
        Record(key=b'job:1', value=b'send mail', version=1, expires_at=None)
        >>> await kv.get_and_delete("job:1") is None
        True
        """
        name = encode_key(key)
        return self._record(name, await self._ask(GetAndDelete(0, name), timeout, resolve=resolve))

    async def _ask(self, asked: Piped, timeout: float | None, *, resolve: bool, accept: int = 0) -> Result:
        """The result of a write that tells no slot and no request id yet."""
        budget = self._timeout if timeout is None else check_timeout(timeout)
        call = Call.of(asked)
        call.resolve = resolve
        return await self._engine.run(call, budget, accept)

    def _record(self, key: bytes, result: Result) -> Record[V] | None:
        if not result.version:
            return None
        value: Any = result.value or b""
        if self._decode is not None:
            value = self._decode(key, value)
        expires_at = None if result.ttl < 0 else self._clock.wall() + result.ttl / 1000
        return Record(key, value, result.version, expires_at)

    # Several keys at once

    async def get_many(
        self,
        keys: Iterable[bytes | str],
        *,
        consistency: Consistency = "linearizable",
        timeout: float | None = None,
    ) -> list[Record[V] | None]:
        """The records of ``keys``, in their order; None for each that is absent. Not a read of one moment.

        Each is read by itself, as many at once as fit into a message to each leader, all within ``timeout``. If some
        could not be read, raises BatchError, which has the records of the others.

        >>> await kv.put_many({"a": "1", "b": "2"})
        [WriteResult(version=1), WriteResult(version=1)]
        >>> [record and record.value for record in await kv.get_many(["a", "b", "c"])]
        [b'1', b'2', None]
        """
        mode, names = mode_of(consistency), keys_of(keys)
        results = await self._many([Call(_GET, name, mode) for name in names], timeout)
        return results_of(names, results, self._record)

    async def put_many(
        self,
        items: Mapping[Any, W] | Iterable[tuple[bytes | str, W]],
        *,
        ttl: float | None = None,
        timeout: float | None = None,
        resolve: bool = False,
    ) -> list[WriteResult]:
        """Write records: of a mapping, or of pairs of key and value. Not atomic: each is written by itself.

        Otherwise as :meth:`get_many`; each takes effect at most once. A key may be given once only.

        >>> await kv.put_many({"a": "1", "b": "2"}, ttl=60)
        [WriteResult(version=1), WriteResult(version=1)]
        """
        names, values = items_of(items, self._encode)
        ttl_ms, calls = ttl_ms_of(ttl), []
        for name, value in zip(names, values, strict=True):
            call = Call(_PUT, name)
            call.value, call.ttl_ms, call.payload = value, ttl_ms, len(value)
            calls.append(call)
        results = await self._many(calls, timeout, resolve=resolve)
        return results_of(names, results, lambda _, result: WriteResult(result.version))

    async def delete_many(
        self, keys: Iterable[bytes | str], *, timeout: float | None = None, resolve: bool = False
    ) -> list[bool]:
        """Remove the records of ``keys``; of each, in order, whether there was one. Otherwise as :meth:`put_many`.

        >>> await kv.put_many({"a": "1"})
        [WriteResult(version=1)]
        >>> await kv.delete_many(["a", "b"])
        [True, False]
        """
        names = keys_of(keys, once=True)
        results = await self._many([Call.of(Delete(0, name)) for name in names], timeout, resolve=resolve)
        return results_of(names, results, lambda _, result: result.version > 0)

    async def _many(
        self, calls: list[Call], timeout: float | None, *, resolve: bool = False
    ) -> list[Result | RaftKVError]:
        for call in calls if resolve else ():
            call.resolve = True
        return await self._engine.run_many(calls, self._timeout if timeout is None else check_timeout(timeout))

    def txn(self) -> AsyncTransaction[W]:
        """A transaction on keys of one slot, such as those with the same hash tag: all of it takes effect, or nothing.

        Checks come first, then what is done if all of them hold, then, behind ``otherwise()``, what is done if not;
        up to 128 of each. ``commit()`` sends it; reads are linearizable; it takes effect once, however often it is
        retried. An answer is 64 KiB at most, else TooLarge.

        >>> await kv.put_many({"{acct}a": "100", "{acct}b": "0"})
        [WriteResult(version=1), WriteResult(version=2)]
        >>> transfer = kv.txn().check("{acct}a", value="100").incr("{acct}a", -30).incr("{acct}b", 30)
        >>> await transfer.otherwise().get("{acct}a").commit()
        TransactionResult(succeeded=True, results=(70, 30), number=4)
        >>> await kv.txn().put("a", "1").put("b", "2").commit()
        Traceback (most recent call last):
        raftkv.errors.CrossSlot: the keys of a transaction must share a slot, ...
        """
        return AsyncTransaction(self._commit, self._encode)

    async def _commit(self, txn: TransactionBuilder[W], timeout: float | None, resolve: bool) -> TransactionResult:
        budget = self._timeout if timeout is None else check_timeout(timeout)
        call = Call.of(txn.take(await self._engine.slots(budget)))
        call.resolve = resolve
        return txn.result(await self._engine.run(call, budget), self._clock.wall(), self._decode)
