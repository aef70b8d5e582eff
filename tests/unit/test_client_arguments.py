"""Guarantee: bad arguments get the server's own typed errors before anything is sent."""

from __future__ import annotations

import math
from typing import Any

import pytest

from raftkv.client.arguments import (
    BEYOND,
    KeyRange,
    check_timeout,
    encode_key,
    encode_value,
    expect_of,
    key_range,
    limit_of,
    mode_of,
    slot_of,
    ttl_ms_of,
)
from raftkv.commands.bounds import ANY_VERSION
from raftkv.errors import InvalidArgument, TooLarge
from raftkv.limits import MAX_KEY_BYTES, MAX_TIMEOUT, MAX_TTL, MAX_VALUE_BYTES, MIN_TIMEOUT
from raftkv.text import shown

HUGE = pytest.param(10**5000, id="huge")  # Python refuses to write it


def test_keys_and_values_are_bytes_or_utf8() -> None:
    assert encode_key("ä") == "ä".encode()
    assert encode_key(b"\x00\xff") == b"\x00\xff"
    mutable: Any = bytearray(b"x")
    view: Any = memoryview(b"abc")
    assert encode_key(mutable) == b"x"
    assert encode_value("") == b""
    assert encode_value(view) == b"abc"


@pytest.mark.parametrize("key", ["", b"", 5, None, "\ud800"])
def test_bad_keys_are_refused(key: Any) -> None:
    with pytest.raises(InvalidArgument):
        encode_key(key)


def test_limits_are_exact() -> None:
    assert len(encode_key(b"k" * MAX_KEY_BYTES)) == MAX_KEY_BYTES
    assert len(encode_value(b"v" * MAX_VALUE_BYTES)) == MAX_VALUE_BYTES
    with pytest.raises(TooLarge):
        encode_key(b"k" * (MAX_KEY_BYTES + 1))
    with pytest.raises(TooLarge):
        encode_value(b"v" * (MAX_VALUE_BYTES + 1))
    with pytest.raises(TooLarge):
        encode_key("ä" * (MAX_KEY_BYTES // 2 + 1))


@pytest.mark.parametrize("value", [None, 5, [1]])
def test_bad_values_are_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument):
        encode_value(value)


def test_ttl_is_rounded_up_so_that_it_never_ends_early() -> None:
    assert ttl_ms_of(None) == 0
    assert ttl_ms_of(0.0001) == 1
    assert ttl_ms_of(1.0005) == 1001
    assert ttl_ms_of(MAX_TTL) == MAX_TTL * 1000


@pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, MAX_TTL + 1, HUGE, "5", True])
def test_bad_ttls_are_refused(ttl: Any) -> None:
    with pytest.raises(InvalidArgument):
        ttl_ms_of(ttl)


@pytest.mark.parametrize(
    "timeout",
    [0, -1, 1e-5, 0.000999, math.nan, math.inf, -math.inf, MAX_TIMEOUT + 1, 10**400, HUGE, "5", True, None],
)
def test_bad_timeouts_are_refused(timeout: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"it must be from 0\.001 to 600") as refused:
        check_timeout(timeout)
    assert len(str(refused.value)) < 200


def test_timeouts_are_kept_as_they_are() -> None:
    assert [check_timeout(one) for one in (MIN_TIMEOUT, 0.05, 5, MAX_TIMEOUT)] == [0.001, 0.05, 5.0, 600.0]


def test_values_are_shown_readably_and_cut() -> None:
    assert shown(b"user:1") == shown("user:1") == "'user:1'"
    assert shown(b"\xff\x00") == "b'\\xff\\x00'"
    assert shown("a\n\x1b[0m") == "'a\\n\\x1b[0m'"
    assert shown(b"k" * 8192) == f"'{'k' * 80}'..."
    assert shown(b"\xff" * 8192).endswith("\\xff'...")
    assert shown(10**100) == f"1{'0' * 79}..."
    assert shown(10**5000) == "int of great length"


def test_keys_with_the_same_hash_tag_have_the_same_slot() -> None:
    for slots in (256, 1024, 16384):
        assert slot_of("{user:1}:name", slots) == slot_of(b"{user:1}:mail", slots) == slot_of("user:1", slots)
    assert slot_of(b"123456789", 16384) == 0x31C3, "as Redis Cluster has it"
    assert slot_of("ä", 1024) == slot_of("ä".encode(), 1024)


@pytest.mark.parametrize(
    ("key", "slots"),
    [("", 1024), (5, 1024), ("\ud800", 1024), (b"k" * (MAX_KEY_BYTES + 1), 1024)]
    + [("k", slots) for slots in (0, -1, 1000, 128, 32768, True, 1024.0, "1024", None)],
)
def test_what_has_no_slot_is_refused(key: Any, slots: Any) -> None:
    with pytest.raises(InvalidArgument):
        slot_of(key, slots)


def test_versions_and_consistencies() -> None:
    assert expect_of(None) == ANY_VERSION
    assert expect_of(0) == 0
    assert [mode_of("linearizable"), mode_of("quorum"), mode_of("stale")] == [0, 1, 2]
    bad: list[Any] = [-1, True, "1", 1.0, 1 << 63, 10**5000]
    for version in bad:
        with pytest.raises(InvalidArgument):
            expect_of(version)
    unknown: list[Any] = ["strong", "", None, 1]
    for consistency in unknown:
        with pytest.raises(InvalidArgument):
            mode_of(consistency)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((None, None, None), KeyRange(b"", BEYOND)),
        (("a", None, None), KeyRange(b"a", b"b")),
        ((b"a\xff\xff", None, None), KeyRange(b"a\xff\xff", b"b")),
        ((b"\xff", None, None), KeyRange(b"\xff", BEYOND)),
        ((None, "b", b"d"), KeyRange(b"b", b"d")),
        (("user:", "user:7", None), KeyRange(b"user:7", b"user;")),
        (("user:", "a", "user:3"), KeyRange(b"user:", b"user:3")),
        (("{q}", None, None), KeyRange(b"{q}", b"{q~", b"{q}")),
        (("a{q}b", None, None), KeyRange(b"a{q}b", b"a{q}c", b"a{q}b")),
        (("{q", None, None), KeyRange(b"{q", b"{r")),
        (("{}q", None, None), KeyRange(b"{}q", b"{}r")),
        ((None, b"k" * (MAX_KEY_BYTES + 1), None), KeyRange(b"k" * (MAX_KEY_BYTES + 1), BEYOND)),
    ],
)
def test_a_range_is_what_prefix_start_and_end_leave(given: tuple[Any, Any, Any], wanted: KeyRange) -> None:
    assert key_range(*given) == wanted


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("wrong", [5, "\ud800", b"k" * (MAX_KEY_BYTES + 2)])
def test_bad_bounds_are_refused(place: int, wrong: Any) -> None:
    given: list[Any] = [None, None, None]
    given[place] = wrong
    with pytest.raises(InvalidArgument):
        key_range(*given)


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "3", 1 << 32])
def test_bad_limits_are_refused(limit: Any) -> None:
    with pytest.raises(InvalidArgument):
        limit_of(limit)
    assert [limit_of(1), limit_of(None)] == [1, None]
