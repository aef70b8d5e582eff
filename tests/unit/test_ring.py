"""Guarantee: the first placement is the same everywhere, within the load bound, and stable when groups come or go."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from shards.ring import LOAD_PERCENT, Ring


@pytest.mark.parametrize("members", [1, 2, 3, 4, 7, 16, 100])
def test_load_is_bounded(members: int) -> None:
    owners = Ring(range(1, members + 1)).assign(1024)
    assert len(owners) == 1024
    assert max(Counter(owners).values()) <= -(-1024 * LOAD_PERCENT // (100 * members))


def test_exact_balance_when_asked_for() -> None:
    assert set(Counter(Ring([1, 2, 3, 4]).assign(1024, load_percent=100)).values()) == {256}


def test_a_new_member_moves_little() -> None:
    before = Ring(range(1, 8)).assign(1024)
    after = Ring(range(1, 9)).assign(1024)
    moved = sum(old != new for old, new in zip(before, after, strict=True))
    assert 1024 // 8 * 0.8 < moved < 1024 // 8 * 2.5, moved


def test_order_of_members_is_irrelevant() -> None:
    assert Ring([3, 1, 2]).assign(512) == Ring([1, 2, 3]).assign(512)


def test_walk_meets_every_member_once() -> None:
    for place in (0, 1, 2**63, 2**64 - 1):
        assert sorted(Ring([1, 2, 3]).walk(place)) == [1, 2, 3]


def test_same_ring_in_another_process() -> None:
    root = Path(__file__).parents[2]
    code = "from shards.ring import Ring; print(list(Ring([1, 2, 3]).assign(256)))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert seen == {f"{list(Ring([1, 2, 3]).assign(256))}\n".encode()}


def test_bad_arguments() -> None:
    with pytest.raises(ValueError):
        Ring([])
    with pytest.raises(ValueError):
        Ring([1, 1])
    with pytest.raises(ValueError):
        Ring([1], virtual_nodes=0)
    with pytest.raises(ValueError):
        Ring([1]).assign(256, load_percent=99)
