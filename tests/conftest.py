"""What all tests share."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

from raftkv.local import node
from tests.forking import Forks

# The same examples on every run: a failure in CI is a failure at the desk.
hypothesis.settings.register_profile("raftkv", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("raftkv")

ROOT = Path(__file__).parent

# Commands that tests run must not meet the clusters of whoever runs them.
os.environ["RAFTKV_CONTEXTS"] = str(ROOT / "no-contexts")

# What a shell runs in the background is deaf to Ctrl-C and Ctrl-\, and so would be the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


LONGEST = (
    "integration/test_chaos.py",
    "integration/test_abuse.py",
    "integration/test_documents.py",
    "integration/test_bench.py",
    "integration/test_client_exits.py",
    "integration/test_cli.py",
    "integration/test_bad_input.py",
    "integration/test_random_faults.py",
    "integration/test_cli_transfer.py",
    "integration/test_bench_memory.py",
    "integration/test_report_browser.py",
)
"""Files that take long, the longest first."""

APART = "sim/"
"""Tests here share nothing, and many take seconds: each may go to another process."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: work is given out in this order, and no process shall work alone in the end."""
    places = {ROOT / name: place for place, name in enumerate(LONGEST)}

    def place(item: pytest.Item) -> int:
        return places.get(item.path, len(places) + (not item.path.is_relative_to(ROOT / APART)))

    items.sort(key=place)


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """The tests of a file stay together, for what they share, but for those that may go apart."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith(f"{ROOT.name}/{APART}") else str(super()._split_scope(nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    """In place of pytest-xdist's own way to give out files."""
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(scope="module", autouse=True)
def modules_are_no_garbage() -> None:
    """Each simulated run collects garbage, in vain among the hundred thousands of objects that imports have made."""
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def nodes_are_forked() -> Iterator[None]:
    """Hundreds of nodes are started, and each would import the same for longer than it takes until it serves."""
    forks = Forks()
    with mock.patch.object(node, "spawn", forks.spawn):
        yield
    forks.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports go from process to process as UTF-8, and what a test has printed or logged may be none."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
