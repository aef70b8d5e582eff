"""bench grow: each value of a curve on a cluster of its own, what does not fit is left out, and the page says all."""

from __future__ import annotations

import contextlib
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import grow, growth
from bench.cli import bench
from bench.grow import CURVES, Curve, GrowOptions
from bench.load import LoadPlan, Measured
from bench.progress import ProgressBar
from bench.report import LoadStats, stats_of
from bench.scenarios import BenchShape
from raftkv.errors import Unavailable
from shards.map import LeadersOver

OPTIONS = GrowOptions(seconds=0.02, warmup=0.0, quick=True)


class World:
    """Clusters that are only written down. Their log grows by a megabyte with each measurement of sets."""

    def __init__(self) -> None:
        self.log: list[tuple[BenchShape, dict[str, Any] | None]] = []
        self.plans: list[LoadPlan] = []
        self.running = 0
        self.fails = False

    @contextlib.contextmanager
    def start(self, shape: BenchShape, folder: Path, raft: Mapping[str, Any] | None = None) -> Iterator[Any]:
        assert list(folder.iterdir()) == []
        self.running += 1
        assert self.running == 1
        self.log.append((shape, None if raft is None else dict(raft)))
        (folder / "wal").mkdir()
        self.wal = folder / "wal" / "wal-1.log"
        self.wal.write_bytes(b"x")
        try:
            yield type(
                "Running",
                (),
                {
                    "endpoints": "x",
                    "nodes": [1],
                    "pid": lambda _, __: os.getpid(),
                    "data_dir": lambda _, __: folder,
                },
            )()
        finally:
            self.running -= 1

    def run(self, plan: LoadPlan) -> LoadStats:
        self.plans.append(plan)
        if self.fails:
            raise Unavailable("no cluster")
        if plan.op == "set":
            with self.wal.open("ab") as file:
                file.write(b"x" * 1024 * 1024)
        took = array("d", [0.001] * 100)
        return stats_of(plan, Measured(took, 0.5, Counter(), computed=0.004))


def measured(world: World, curve: Curve, options: GrowOptions = OPTIONS, room: int = 2**40) -> dict[str, Any]:
    return grow.measure(curve, options, ProgressBar(1), world.run, world.start, lambda: room)


@pytest.fixture
def world() -> World:
    return World()


def test_each_value_has_a_cluster_of_its_own_which_is_filled_before(world: World) -> None:
    found = measured(world, CURVES["nodes"])
    assert [(shape.nodes, shape.groups, shape.leaders) for shape, _ in world.log] == [
        (3, 9, LeadersOver.NODES), (4, 12, LeadersOver.NODES),
    ]  # fmt: skip
    assert [(plan.op, plan.fill) for plan in world.plans] == [("get", True), ("get", False), ("set", False)] * 2
    assert [(point["value"], point["op"]) for point in found["points"]] == [
        (3, "get"), (3, "set"), (4, "get"), (4, "set"),
    ]  # fmt: skip
    point = found["points"][0]
    assert (point["per_second"], point["client_us"], point["errors"]) == (200.0, 40.0, {})
    assert point["node_bytes"] > 0
    assert found["left_out"] == []


def test_what_grows_is_what_the_curve_says(world: World) -> None:
    for name, field in (("records", "keys"), ("connections", "clients"), ("values", "value_size")):
        curve = CURVES[name]
        assert [getattr(curve.point(value).plan, field) for value in curve.values] == list(curve.values)
    assert [CURVES["groups"].point(value).shape.groups for value in (1, 64)] == [1, 64]
    # A gigabyte is not what a value's cost needs.
    assert CURVES["values"].point(1_048_576).plan.keys * 1_048_576 <= 64 * 1024 * 1024


def test_the_log_is_as_long_as_it_is_to_be_before_it_is_measured(world: World) -> None:
    curve = Curve("log", "a log", "MiB", (0, 3), (0, 3), CURVES["log"].point)
    measured(world, curve)
    assert [raft is None for _, raft in world.log] == [True, False]
    # Of the second: filled, three rounds of writes, then what counts.
    assert [plan.op for plan in world.plans[3:]] == ["get", "set", "set", "set", "get", "set"]


def test_what_needs_more_memory_or_time_is_left_out_and_says_why(world: World) -> None:
    found = measured(world, CURVES["records"], room=200_000)
    assert [(one["value"], one["why"]) for one in found["left_out"]] == [
        (1000, "it may need 0.0 GiB of memory, and 0.0 are free")
    ]
    hasty = GrowOptions(seconds=0.02, warmup=0.0, quick=True, minutes=0.0)
    found = measured(world, CURVES["groups"], hasty)
    assert {point["value"] for point in found["points"]} == {1}
    assert found["left_out"] == [{"value": 4, "why": "it would take longer than 0 minutes"}]
    world.fails = True
    found = measured(world, CURVES["groups"])
    assert [one["why"] for one in found["left_out"]] == ["no cluster"] * 2


MACHINE = {"cores": 2, "processor": "p", "python": "3.11", "python_build": "-O3", "commit": "abc"}


def result_of(*curves: dict[str, Any]) -> dict[str, Any]:
    options = {"seconds": 0.02, "warmup": 0.0}
    return {"format": grow.FORMAT, "machine": MACHINE, "options": options, "curves": list(curves)}


def test_the_page_has_a_table_and_a_picture_for_each_curve(world: World, tmp_path: Path) -> None:
    curves = [measured(world, CURVES[name]) for name in ("nodes", "values")]
    curves[1]["left_out"] = [{"value": 7, "why": "too | large"}]
    for point in curves[0]["points"]:
        point.update(nodes_us=10.0 if point["op"] == "get" else 100.0)
    result = result_of(*curves)
    growth.write(tmp_path, result)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    text = (tmp_path / growth.MARKDOWN).read_text()
    for name in ("nodes", "values"):
        assert f"](grow-{name}.svg)" in text
        assert "SET nodes" in (tmp_path / f"grow-{name}.svg").read_text()
    assert "| 4 GET | 200 | 1.00 | 1.00 |" in text
    assert "- not measured: 7: too \\| large" in text
    # 10 and 100 us of all nodes: with a core each, nine nodes do 900,000 and 90,000 a second at most.
    assert "| 9 | 900,000 | 90,000 |" in text


def test_without_the_curve_of_nodes_nothing_is_said_of_many_cores(world: World, tmp_path: Path) -> None:
    growth.write(tmp_path, result_of(measured(world, CURVES["values"])))
    assert "A core for each node" not in (tmp_path / growth.MARKDOWN).read_text()


def test_every_field_is_documented(world: World) -> None:
    documented = set(re.findall(r"``(\w+)``", grow.__doc__ or ""))
    found = measured(world, CURVES["nodes"])
    named = set(result_of(found)) | set(found) | {field for point in found["points"] for field in point}
    assert named - documented == set()


@pytest.mark.parametrize(
    ("arguments", "what"), [(["nonsense"], "there is no curve nonsense"), (["--out", "full"], "full is not empty")]
)
def test_bad_input_is_a_clear_error(
    arguments: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    (Path("full") / "file").touch()
    done = CliRunner().invoke(bench, ["grow", *arguments])
    assert done.exit_code == 2
    assert what in done.output


def test_curves_are_listed() -> None:
    listed = CliRunner().invoke(bench, ["grow", "--list"])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in CURVES)
