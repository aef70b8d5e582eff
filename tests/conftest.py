"""What all tests share."""

from __future__ import annotations

import gc
import signal
from collections.abc import Generator

import hypothesis
import pytest

# The same examples on every run: a failure in CI is a failure at the desk.
hypothesis.settings.register_profile("raftkv", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("raftkv")

# What a shell runs in the background is deaf to Ctrl-C and Ctrl-\, and so would be the processes that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


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
