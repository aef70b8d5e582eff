"""Pictures are well formed, say what they show beside it, and adapt to light and dark."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from matplotlib.patches import Rectangle

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
    sections = [("one", bars[:1]), ("two", bars[1:]), ("none", [])]
    said = texts(parsed(svg.bars("Title & more", "per second", sections, "small")))
    wanted = {"Title & more", "per second", "one", "two", "a <b>", "1,000 · p99 1 ms", "c", "250", "not found", "small"}
    assert wanted < set(said)
    assert "none" not in said
    figure = svg.bar_figure("t", "q", sections)
    widths = [[bar.get_bbox().width for bar in axes.patches if isinstance(bar, Rectangle)] for axes in figure.axes]
    assert widths == [[1000.0], [250.0, 0.0]]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1


def test_nothing_is_drawn_outside_of_the_picture() -> None:
    bars = [Bar(f"a rather long name {at}", 10.0**at, "raftkv", "and a long note " * 2) for at in range(6)]
    lines = [
        Line(f"a line {at}", svg.APART[at % 6], [(x, 1e-3 * (at + 1) * x) for x in (1, 10, 1000)]) for at in range(14)
    ]
    panels = [Panel("ms", "workers", lines, log_x=True, log_y=True), Panel("ms", "workers", lines)]
    for figure in (svg.bar_figure("t", "q", [("all", bars)], "word " * 100), svg.line_figure("t", panels, "word " * 9)):
        figure.draw_without_rendering()
        drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert 0 <= drawn.x0 <= drawn.x1 <= width
        assert 0 <= drawn.y0 <= drawn.y1 <= height


@pytest.mark.parametrize("at_top", [True, False])
def test_labels_of_lines_do_not_lie_on_each_other(at_top: bool) -> None:
    lines = [Line(f"line-{at}", "get", [(0, 5.0), (10, 5.0 + at / 1000)]) for at in range(8)]
    others = [] if at_top else [Line("line-9", "set", [(0, 5.0), (10, 50.0)])]
    figure = svg.line_figure("t", [Panel("ms", "x", lines + others)])
    figure.draw_without_rendering()
    boxes = sorted((text.get_window_extent() for text in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == len(lines + others)
    assert all(below.y1 < above.y0 + 2 for below, above in pairwise(boxes))


def test_a_panel_without_points_has_its_axes_only() -> None:
    assert {"t", "ms", "x"} <= set(texts(parsed(svg.lines("t", [Panel("ms", "x", [])]))))
    assert not svg.line_figure("t", [Panel("ms", "x", [])]).axes[0].lines


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
