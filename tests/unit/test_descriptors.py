"""File descriptors of a node's process: raised at the start, and shared between clients and the rest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raftkv import limits
from raftkv.node import descriptors
from raftkv.node.descriptors import Descriptors, in_use

_CHILD = """
import resource
from raftkv.node.descriptors import raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 333))
print(raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_soft_limit_becomes_the_hard_one() -> None:
    done = subprocess.run([sys.executable, "-c", _CHILD], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split() == ["333", "333", "333"]


def test_clients_get_what_the_rest_of_the_node_leaves() -> None:
    """More peers leave less; there is a bound for large limits, and some are let in whatever the limit is."""
    small = Descriptors(256, 2).clients
    assert 64 < small < 256 - 64
    assert Descriptors(256, 4).clients < small
    assert Descriptors(512, 2, tls=True).clients < Descriptors(512, 2).clients
    assert Descriptors(1 << 20, 2).clients == limits.MAX_CONNECTIONS
    assert Descriptors(64, 2).clients > 0


def test_what_is_in_use_is_counted() -> None:
    before = in_use()
    files = [Path(__file__).open("rb") for _ in range(10)]  # noqa: SIM115
    assert in_use() == before + 10
    for file in files:
        file.close()


def test_clients_that_have_taken_all_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Descriptors(256, 2)
    monkeypatch.setattr(descriptors, "in_use", lambda: 40)
    assert list(one.problems()) == []
    monkeypatch.setattr(descriptors, "in_use", lambda: 30 + one.clients)
    (problem,) = one.problems()
    assert problem.kind == "descriptors"
    assert f"{30 + one.clients} of 256" in problem.text


def test_a_limit_that_is_too_low_for_the_node_itself_is_a_problem() -> None:
    (problem,) = Descriptors(64, 2).problems()
    assert "only 64 file descriptors are allowed" in problem.text
