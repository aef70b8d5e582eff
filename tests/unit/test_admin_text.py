"""What operators write is understood or refused in words; what they read says it in few."""

from __future__ import annotations

import pytest

from raftkv.cli.admin.text import (
    counted,
    listed,
    numbers_of,
    parse_ranges,
    parse_rate,
    parse_weights,
    ranges_text,
    rate_text,
    shortened,
    size_text,
    time_text,
)


def test_lists_of_slots() -> None:
    assert parse_ranges("1,5-9") == ((1, 1), (5, 9))
    assert numbers_of(parse_ranges("1,5-9")) == (1, 5, 6, 7, 8, 9)
    assert numbers_of(parse_ranges(" 3 - 4 , 3,0")) == (0, 3, 4)
    for text in ("", "1,", "a", "1-", "-1", "5-4", "1.5", "1 2", "9" * 5000):
        with pytest.raises(ValueError):
            parse_ranges(text)


def test_slots_are_written_as_they_are_read() -> None:
    assert ranges_text([9, 1, 5, 6, 7, 8]) == "1,5-9"
    assert ranges_text([]) == ""
    for numbers in ([0], [0, 1], [0, 2, 3, 7], list(range(100))):
        assert numbers_of(parse_ranges(ranges_text(numbers))) == tuple(numbers)


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10MB", 10_000_000),
        ("10 mb/s", 10_000_000),
        ("512KiB", 524_288),
        ("1.5M", 1_500_000),
        ("1GiB/s", 2**30),
        ("1000", 1000),
        ("7B", 7),
        ("unlimited", 0),
        ("0", 0),
    ],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize(
    "text", ["", "fast", "10XB", "-1", "1e3", "0.1B", "9999TB", "9" * 400 + "MB", "9" * 400, "5iB", "10MB/min"]
)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="rate|range"):
        parse_rate(text)


def test_numbers_for_people() -> None:
    assert [size_text(size) for size in (0, 999, 1000, 12_345, 999_600, 123_456_789, 5e12, 7e15)] == [
        "0 B",
        "999 B",
        "1.0 KB",
        "12.3 KB",
        "1.0 MB",
        "123 MB",
        "5.0 TB",
        "7000 TB",
    ]
    assert (rate_text(0), rate_text(2_000_000)) == ("unlimited", "2.0 MB/s")
    assert [time_text(seconds) for seconds in (None, 0.04, 9.94, 61.5, 125, 7325, 90_000)] == [
        "-",
        "0.0 s",
        "9.9 s",
        "62 s",
        "2 min 5 s",
        "2 h 2 min",
        "25 h 0 min",
    ]
    assert (listed([1, 2]), listed([])) == ("1, 2", "-")
    assert (counted(1, "slot"), counted(1200, "slot")) == ("1 slot", "1,200 slots")
    assert shortened("a" * 50) == "a" * 45 + "..."


def test_weights() -> None:
    assert parse_weights(["3=0.5", "1=2"]) == {3: 0.5, 1: 2.0}
    for item in ("3", "3=", "=1", "a=1", "3=-1", "3=nan"):
        with pytest.raises(ValueError, match="GROUP=WEIGHT"):
            parse_weights([item])
