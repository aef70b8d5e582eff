"""What all tests share."""

from __future__ import annotations

import gc
import signal
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

# The same examples on every run: a failure in CI is a failure at the desk.
hypothesis.settings.register_profile("raftkv", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("raftkv")

ROOT = Path(__file__).parent

# What a shell runs in the background is deaf to Ctrl-C and Ctrl-\, and so would be the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


LONGEST = (
    "sim/test_storms.py",
    "integration/test_chaos.py",
    "integration/test_documents.py",
    "sim/test_bank.py",
    "integration/test_report_browser.py",
    "sim/test_mutants.py",
    "integration/test_cli_transfer.py",
    "integration/test_cli.py",
    "integration/test_bench.py",
    "integration/test_bench_memory.py",
)
"""Files that take long, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: files are given out in this order, and no process shall work alone in the end."""
    places = {ROOT / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="module", autouse=True)
def modules_are_no_garbage() -> None:
    """Each simulated run collects garbage, in vain among the hundred thousands of objects that imports have made."""
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports go from process to process as UTF-8, and what a test has printed or logged may be none."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
