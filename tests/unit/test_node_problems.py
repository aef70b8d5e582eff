"""What a node finds wrong with itself is kept as it is now, and logged when it comes and goes."""

from __future__ import annotations

import logging

import pytest

from raftkv.api.status import Problem
from raftkv.node.problems import Problems


def test_each_problem_is_logged_when_it_comes_and_when_it_goes(caplog: pytest.LogCaptureFixture) -> None:
    found = [Problem("disk_full", "5 bytes"), Problem("clock_skew", "3 s", node=2)]
    problems = Problems([lambda: found[:1], lambda: found[1:]])
    with caplog.at_level(logging.WARNING, logger="raftkv.node.problems"):
        assert problems.current == ()
        problems.look()
        assert problems.current == tuple(found)
        found[0] = Problem("disk_full", "4 bytes")
        problems.look()
        assert problems.current == tuple(found), "as of now, and not logged again"
        del found[1:]
        problems.look()
    assert [record.getMessage() for record in caplog.records] == [
        "disk_full: 5 bytes",
        "clock_skew: 3 s",
        "clock_skew is over: 3 s",
    ]
