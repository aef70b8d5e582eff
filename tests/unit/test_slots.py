"""Guarantee: every party computes the same slot for a key, the one that Redis Cluster's rules give."""

from binascii import crc_hqx
from itertools import pairwise

import pytest

from shards.slots import (
    MAX_SLOTS,
    hash_tag,
    is_slot_count,
    redis_range,
    redis_slot_of,
    rule_refusal,
    slot_bits,
    slot_of,
    slots_in,
)


def test_checksum_is_xmodem() -> None:
    assert crc_hqx(b"123456789", 0) == 0x31C3
    assert redis_slot_of(b"123456789") == 0x31C3 & 16383 == slot_of(b"123456789", 16384)
    assert slot_of(b"123456789") == (0x31C3 & 16383) >> 4


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        (b"plain", b"plain"),
        (b"{user1000}.following", b"user1000"),
        (b"foo{}{bar}", b"foo{}{bar}"),
        (b"foo{{bar}}zap", b"{bar"),
        (b"foo{bar}{zap}", b"bar"),
        (b"foo{bar", b"foo{bar"),
        (b"foo}bar{", b"foo}bar{"),
        (b"}{a}", b"a"),
        (b"", b""),
    ],
)
def test_hash_tag(key: bytes, tag: bytes) -> None:
    assert hash_tag(key) == tag
    assert redis_slot_of(key) == crc_hqx(tag, 0) % 16384
    assert slot_of(key) == redis_slot_of(key) // 16


def test_keys_of_one_tag_share_a_slot() -> None:
    assert len({slot_of(b"{cart}/%d" % i) for i in range(100)}) == 1


def test_slot_counts() -> None:
    assert [n for n in range(20000) if is_slot_count(n)] == [256, 512, 1024, 2048, 4096, 8192, 16384]
    assert not is_slot_count(-256)


@pytest.mark.parametrize("slots", [256, 1024, 16384])
def test_each_slot_is_one_range_of_redis_slots(slots: int) -> None:
    """What CLUSTER SLOTS can say: ranges that follow one another, each with all keys of its slots and no others."""
    ranges = [redis_range(slot, slots) for slot in range(slots)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == MAX_SLOTS - 1
    assert all(after[0] == before[1] + 1 for before, after in pairwise(ranges))
    for key in (b"%d" % number for number in range(2000)):
        first, last = ranges[slot_of(key, slots)]
        assert first <= redis_slot_of(key) <= last


def test_slots_travel_as_bits() -> None:
    assert slot_bits([0, 9, 255], 256) == bytes([1, 2, *[0] * 29, 128])
    for some in ([], [0], [7, 8], [3, 200, 255], list(range(256))):
        assert slots_in(slot_bits(reversed(some), 256)) == some


def test_known_slots() -> None:
    """As `CLUSTER KEYSLOT` answers, and a sixteenth of it: whatever changes these needs another number of the rule."""
    known = {b"foo": 12182, b"bar": 5061, b"hello": 866, b"user:1": 10778}
    assert {key: redis_slot_of(key) for key in known} == known
    assert [slot_of(key) for key in known] == [761, 316, 54, 673]


def test_a_party_of_another_rule_is_refused() -> None:
    assert rule_refusal(2) == ""
    assert "none is given, as by raftkv 0.1" in rule_refusal(0)
    for other in (1, 3, True, None, "2", 2.0):
        assert f"by rule 2 here, not rule {other}" in rule_refusal(other)
