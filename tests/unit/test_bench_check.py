"""`bench check` fails if, and only if, a ratio fell further below its baseline than noise explains."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bench import check, disk
from bench.check import BASELINE, RATIOS, TOLERANCE, Round, command, ratios, worse

USUAL = {"echo": 100.0, "get": 50.0, "get_quorum": 40.0, "set": 30.0, "set_one_group": 60.0, "disk": 10.0}
EXPECTED = {"get_to_echo": 0.5, "set_to_disk": 3.0, "three_groups_to_one": 0.5, "quorum_to_lease": 0.8}


def run(monkeypatch: pytest.MonkeyPatch, rounds: Sequence[Round], *arguments: str) -> Result:
    monkeypatch.setattr(check, "measure_rounds", lambda *_: rounds)
    return CliRunner().invoke(command, arguments)


def test_medians_of_ratios_of_each_round() -> None:
    """A machine that is slow in one round is so on both sides of a ratio; a hiccup in one is no result."""
    slow = {name: rate / 5 for name, rate in USUAL.items()}
    assert ratios([USUAL, slow, USUAL | {"get": 1.0}]) == EXPECTED


def test_only_what_fell_by_more_than_the_tolerance_is_worse() -> None:
    limit = {name: value * (1 - TOLERANCE) for name, value in EXPECTED.items()}
    assert worse(limit, EXPECTED) == []
    assert worse(limit | {"get_to_echo": limit["get_to_echo"] * 0.99}, EXPECTED) == ["get_to_echo"]
    assert worse({name: 10 * value for name, value in EXPECTED.items()}, EXPECTED) == []
    assert worse(EXPECTED, {}) == []


def test_the_baseline_is_written_and_then_compared_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    where = ("--baseline", str(tmp_path / "baseline.json"))
    missing = run(monkeypatch, [USUAL], *where)
    assert missing.exit_code == 1
    assert "--update" in missing.output
    assert run(monkeypatch, [USUAL], *where, "--update").exit_code == 0
    assert json.loads((tmp_path / "baseline.json").read_text()) == EXPECTED
    assert run(monkeypatch, [USUAL], *where).exit_code == 0
    slower = run(monkeypatch, [USUAL | {"set": 15.0}], *where)
    assert slower.exit_code == 1
    assert "set_to_disk, three_groups_to_one" in slower.output
    told = json.loads(run(monkeypatch, [USUAL | {"set": 15.0}], *where, "-o", "json").stdout)
    assert told["worse"] == ["set_to_disk", "three_groups_to_one"]


def test_the_committed_baseline_has_every_ratio() -> None:
    found = json.loads(BASELINE.read_text())
    assert set(found) == set(RATIOS)
    assert all(value > 0 for value in found.values())


def test_the_rate_of_the_disk(tmp_path: Path) -> None:
    found = disk.measure(tmp_path, 0.1)
    assert found.per_second > 0
    assert 0 < found.p50_ms <= found.p99_ms
    assert list(tmp_path.iterdir()) == []
