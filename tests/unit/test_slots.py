"""Guarantee: every party computes the same slot for a key, the one that Redis Cluster's rules give."""

from binascii import crc_hqx

import pytest

from shards.slots import hash_tag, is_slot_count, slot_of


def test_checksum_is_xmodem() -> None:
    assert crc_hqx(b"123456789", 0) == 0x31C3
    assert slot_of(b"123456789", 16384) == 0x31C3 & 16383
    assert slot_of(b"123456789") == 0x31C3 & 1023


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
    assert slot_of(key) == crc_hqx(tag, 0) % 1024


def test_keys_of_one_tag_share_a_slot() -> None:
    assert len({slot_of(b"{cart}/%d" % i) for i in range(100)}) == 1


def test_slot_counts() -> None:
    assert [n for n in range(20000) if is_slot_count(n)] == [256, 512, 1024, 2048, 4096, 8192, 16384]
    assert not is_slot_count(-256)
