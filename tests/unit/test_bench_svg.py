"""Pictures are well formed, say what they show beside it, and adapt to light and dark."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest

from bench import svg
from bench.svg import Bar, Line, Panel

NAME = f"{{{svg.NAMESPACE}}}"


def parsed(picture: str) -> ET.Element:
    assert "prefers-color-scheme:dark" in picture
    # Every colour that is used is defined, once for light and once for dark.
    for name in set(re.findall(r"var\(--([a-z]+)\)", picture)):
        assert picture.count(f"--{name}:#") == 2
    return ET.fromstring(picture)


def texts(root: ET.Element) -> list[str]:
    return [one.text or "" for one in root.iter(f"{NAME}text")]


def test_bars_have_one_scale_and_their_values_behind_them() -> None:
    bars = [Bar("a <b>", 1000.0, "raftkv", "p99 1 ms"), Bar("c", 250.0, "etcd"), Bar("d", None, "valkey", "not found")]
    root = parsed(svg.bars("Title & more", "per second", [("one", bars[:1]), ("two", bars[1:]), ("none", [])], "small"))
    said = texts(root)
    assert {
        "Title & more",
        "per second",
        "one",
        "two",
        "a <b>",
        "1,000",
        "p99 1 ms",
        "250",
        "not found",
        "small",
    } < set(said)
    assert "none" not in said
    drawn = {one.get("fill"): float(one.get("width", "0")) for one in root.iter(f"{NAME}rect") if one.get("rx")}
    assert drawn["var(--raftkv)"] == pytest.approx(4 * drawn["var(--etcd)"], abs=0.5)
    assert "var(--valkey)" not in drawn


def test_nothing_is_drawn_outside_of_the_picture() -> None:
    bars = [Bar(f"a rather long name {at}", 10.0**at, "raftkv", "and a long note " * 2) for at in range(6)]
    lines = [
        Line(f"a line {at}", svg.APART[at % 6], [(x, 1e-3 * (at + 1) * x) for x in (1, 10, 1000)]) for at in range(14)
    ]
    panels = [Panel("ms", "workers", lines, log_x=True, log_y=True), Panel("ms", "workers", lines)]
    for picture in (svg.bars("t", "q", [("all", bars)], "word " * 100), svg.lines("t", panels, "word " * 100)):
        root = parsed(picture)
        width, height = (float(root.get(name, "0")) for name in ("width", "height"))
        for one in root.iter(f"{NAME}text"):
            x, y = float(one.get("x", "-1")), float(one.get("y", "-1"))
            wide = len(one.text or "") * (6.72 if one.get("class") == "s" else 7.28)
            left = {"start": x, "middle": x - wide / 2, "end": x - wide}[one.get("text-anchor", "start")]
            assert -2 <= left <= left + wide <= width + 2, one.text
            assert 0 <= y <= height
        for one in root.iter(f"{NAME}circle"):
            assert 0 <= float(one.get("cx", "-1")) <= width
            assert 0 <= float(one.get("cy", "-1")) <= height


def test_labels_of_lines_do_not_lie_on_each_other() -> None:
    lines = [Line(f"line-{at}", "one", [(0, 5.0), (10, 5.0 + at / 1000)]) for at in range(8)]
    root = parsed(svg.lines("t", [Panel("ms", "x", lines)]))
    at = sorted(float(one.get("y", "0")) for one in root.iter(f"{NAME}text") if (one.text or "").startswith("line-"))
    assert len(at) == 8
    assert all(after - before > 12 for before, after in pairwise(at))


def test_a_panel_without_points_is_left_empty() -> None:
    assert texts(parsed(svg.lines("t", [Panel("ms", "x", [])]))) == ["t"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (999, "999"), (1500, "1.5k"), (20_000, "20k"), (3e6, "3M"), (2e9, "2G")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert svg.short(value) == text


def test_bytes_are_counted_in_powers_of_two() -> None:
    assert svg.ticks("bytes of a value", (16, 8192, 65_536, 2**20)) == [
        (16.0, "16 B"), (8192.0, "8 KiB"), (65_536.0, "64 KiB"), (1_048_576.0, "1 MiB"),
    ]  # fmt: skip
    assert svg.ticks("workers", (1, 1000)) == [(1.0, "1"), (1000.0, "1k")]
