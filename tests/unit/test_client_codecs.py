"""Guarantee: a client's codec holds for all its calls, and what it cannot take or read is told without harm."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from raftkv import Client, CodecError, InvalidArgument, Record, TooLarge, codecs
from raftkv.codecs import Codec
from raftkv.errors import BatchError
from raftkv.limits import MAX_VALUE_BYTES
from raftkv.testing import FakeAsyncClient, FakeClient, FakeCluster

VALUES: list[tuple[Codec[Any, Any], Any, Any]] = [
    (codecs.BYTES, b"\xff\0", b"other"),
    (codecs.STR, "grüß", "text"),
    (codecs.JSON, {"b": [1, None, "x"], "a": 2.5}, [True]),
    (codecs.MSGPACK, {"b": [1, b"\xff"], "a": -(2**63)}, "text"),
]


def value_of(record: Record[Any] | None) -> Any:
    assert record is not None
    return record.value


@pytest.mark.parametrize(("codec", "one", "two"), VALUES, ids=lambda one: getattr(one, "name", ""))
def test_a_codec_holds_for_every_call(codec: Codec[Any, Any], one: Any, two: Any) -> None:
    with FakeClient(codec=codec) as kv:
        version = kv.put("{s}a", one).version
        assert kv.get("{s}a") == Record(b"{s}a", one, version)
        assert kv.update("{s}a", two, version=version)
        assert kv.create("{s}b", one)
        assert kv.cas("{s}a", two, one)
        assert not kv.cas("{s}a", two, one)
        assert [value_of(record) for record in kv.get_many(["{s}a", "{s}b"])] == [one, one]
        assert kv.put_many({"{s}c": two, "{s}d": two})
        assert [record.value for record in kv.scan()] == [one, one, two, two]
        assert [record.value for record in kv.scan(keys_only=True)] == [b""] * 4
        assert kv.delete("{s}c", if_value=two)
        assert value_of(kv.get_and_delete("{s}d")) == two
        done = kv.txn().check("{s}a", value=one).put("{s}a", two).get("{s}a").get("{s}b").commit()
        assert done
        assert [record.value for record in done.results[1:]] == [two, one]
        assert kv.count(prefix="{s}") == kv.delete_prefix("{s}") == 2

    async def ask() -> None:
        async with FakeAsyncClient(codec=codec) as kv:
            await kv.put("a", one)
            assert value_of(await kv.get("a")) == one
            assert [record.value async for record in kv.scan()] == [one]

    asyncio.run(ask())


@pytest.mark.parametrize("codec", [codecs.JSON, codecs.MSGPACK], ids=lambda one: one.name)
def test_equal_values_are_equal_bytes(codec: Codec[Any, Any]) -> None:
    with FakeClient(codec=codec) as kv:
        kv.put("k", {"b": 1, "a": {"y": 1, "x": 2}})
        assert kv.cas("k", {"a": {"x": 2, "y": 1}, "b": 1}, None)
        assert value_of(kv.get("k")) is None, "there is a record, and it holds null"


@dataclass
class User:
    name: str
    age: int = 0


@pytest.mark.parametrize("codec", [codecs.json_of(User), codecs.msgpack_of(User)], ids=lambda one: one.name)
def test_a_codec_of_a_type_reads_only_that(codec: Codec[User, User]) -> None:
    cluster = FakeCluster()
    with cluster.client(codec=codec) as kv, cluster.client(codec=Codec(codec.name, codec.encode, bytes)) as raw:
        kv.put("user:1", User("Ada", 36))
        assert kv.get("user:1") == Record(b"user:1", User("Ada", 36), 1)
        data = value_of(raw.get("user:1"))
        raw.put("user:2", User("Bob"))
        assert codec.decode(data) == User("Ada", 36)


def spoilt(kv: Client[Any, Any]) -> None:
    """What is there is JSON, but for one record."""
    cluster = kv.cluster if isinstance(kv, FakeClient) else None
    assert cluster is not None
    with cluster.client() as raw:
        raw.put_many({"{s}a": b"1", "{s}b": b"\xff", "{s}c": b"3"})


def test_a_value_that_cannot_be_read_is_told_with_its_bytes() -> None:
    with FakeClient(codec=codecs.JSON) as kv:
        spoilt(kv)
        for ask in (
            lambda: kv.get("{s}b"),
            lambda: kv.txn().get("{s}b").commit(),
            lambda: list(kv.scan()),
            lambda: kv.get_and_delete("{s}b"),
        ):
            with pytest.raises(CodecError, match=r"key '{s}b': the value cannot be read as json") as caught:
                ask()
            assert (caught.value.key, caught.value.data) == (b"{s}b", b"\xff")
        assert kv.get("{s}b") is None, "get_and_delete has removed it, and its error has what it was"
        spoilt(kv)
        with pytest.raises(BatchError) as many:
            kv.get_many(["{s}a", "{s}b", "{s}c"])
        assert [getattr(one, "value", type(one)) for one in many.value.results] == [1, CodecError, 3]
        assert list(many.value.errors) == [b"{s}b"]
        scan = kv.scan()
        assert next(scan).value == 1
        with pytest.raises(CodecError):
            next(scan)
        assert [record.value for record in kv.scan(start=b"{s}b\0")] == [3]


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        (codecs.BYTES, 7),
        (codecs.STR, b"bytes"),
        (codecs.STR, "\ud800"),
        (codecs.JSON, object()),
        (codecs.MSGPACK, 2**64),
        (Codec("odd", lambda value: value, bytes), 7),
    ],
    ids=lambda one: getattr(one, "name", ""),
)
def test_what_a_codec_does_not_take_is_refused_before_anything_is_sent(codec: Codec[Any, Any], value: Any) -> None:
    with FakeClient(codec=codec) as kv:
        for ask in (
            lambda: kv.put("k", value),
            lambda: kv.put_many({"k": value}),
            lambda: kv.cas("k", value, value),
            lambda: kv.delete("k", if_value=value),
            lambda: kv.txn().put("k", value),
            lambda: kv.txn().check("k", value=value),
        ):
            with pytest.raises(InvalidArgument):
                ask()
        assert kv.count() == 0


def test_limits_hold_for_the_bytes() -> None:
    with FakeClient(codec=codecs.JSON) as kv, pytest.raises(TooLarge):
        kv.put("k", "x" * (MAX_VALUE_BYTES - 1))


def test_counters_and_what_is_appended_are_text_for_every_codec() -> None:
    with FakeClient(codec=codecs.STR) as kv:
        assert kv.incr("n", 41) == 41
        assert value_of(kv.get("n")) == "41"
        kv.append("log", "one,")
        kv.append("log", b"two,")
        assert value_of(kv.get("log")) == "one,two,"
    with FakeClient(codec=codecs.JSON) as kv:
        kv.incr("n", 41)
        assert value_of(kv.get("n")) == 41


def test_a_scan_of_large_decoded_values_comes_in_parts() -> None:
    with FakeClient(codec=codecs.JSON) as kv:
        kv.put_many({f"k{number:04}": {"number": number} for number in range(1500)})
        assert [record.value["number"] for record in kv.scan()] == list(range(1500))


def test_something_that_is_no_codec_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"raftkv\.codecs"):
        FakeAsyncClient(codec="json")  # type: ignore[arg-type]


def test_errors_of_the_libraries_are_the_causes() -> None:
    with FakeClient(codec=codecs.json_of(User)) as kv:
        with kv.cluster.client() as raw:
            raw.put("k", b'{"age": 7}')
        with pytest.raises(CodecError) as caught:
            kv.get("k")
        assert isinstance(caught.value.__cause__, msgspec.ValidationError)
