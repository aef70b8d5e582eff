"""Guarantee: a signal ends a node only if it means to; who insists does not wait."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest

from raftkv.clock import SystemClock
from raftkv.errors import StorageError
from raftkv.node import main, signals
from raftkv.node.main import _hand_over
from tests.unit.test_reloading import config


@pytest.fixture
def as_before() -> Iterator[None]:
    """The handlers of signals are put back."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    for number, handler in before.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


@pytest.mark.parametrize(
    ("sent", "heard"),
    [
        (["SIGTERM"], [False]),
        (["SIGINT"], [False]),
        (["SIGINT", "SIGINT"], [False, True]),
        (["SIGTERM", "SIGINT"], [False, True]),
        (["SIGTERM", "SIGTERM"], [False, False]),
        (["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGTERM"], ["reload", False]),
        (["SIGTERM", "SIGHUP", "SIGUSR1"], [False, "reload"]),
    ],
)
@pytest.mark.usefixtures("as_before")
def test_what_signals_ask_for(sent: list[str], heard: list[Any]) -> None:
    got: list[Any] = []

    async def main() -> None:
        signals.handle(asyncio.get_running_loop(), got.append, lambda: got.append("reload"))
        for name in sent:
            signal.raise_signal(signal.Signals[name])
        await asyncio.sleep(0)

    asyncio.run(main())
    assert got == heard
    signal.raise_signal(signal.SIGTERM)
    assert got == heard, "after the loop has ended a signal says nothing"


def test_no_signal_of_a_storm_ends_the_process_otherwise_than_in_order() -> None:
    code = (
        "import asyncio, os, signal, subprocess, sys\n"
        "import uvloop\n"
        "from raftkv.node import signals\n"
        "async def main():\n"
        "    ended = asyncio.Event()\n"
        "    signals.handle(asyncio.get_running_loop(), lambda _: ended.set(), lambda: None)\n"
        "    print('ready', flush=True)\n"
        "    await ended.wait()\n"
        "uvloop.run(main())\n"
        "signals.ignore()\n"
        "print('in order', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert (process.returncode, process.stdout.read()) == (0, "in order\n")


def test_strays_are_ignored_and_handlers_of_others_stay() -> None:
    code = (
        "import os, signal\n"
        "from raftkv.node.signals import ignore_strays\n"
        "def mine(*_): print('mine')\n"
        "signal.signal(signal.SIGPROF, mine)\n"
        "ignore_strays()\n"
        "names = 'HUP USR1 USR2 ALRM VTALRM PROF IO PIPE XFSZ STKFLT RTMIN RTMAX'.split()\n"
        "for name in names:\n"
        "    os.kill(os.getpid(), getattr(signal, 'SIG' + name, 0))\n"
        "print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "mine\nalive\n"), done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT, signal.SIGSEGV])
def test_what_means_to_end_a_process_is_left_alone(number: int) -> None:
    code = f"import os; from raftkv.node.signals import ignore_strays; ignore_strays(); os.kill(os.getpid(), {number})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -number


class Ending:
    """A node or server whose end takes for ever, unless it is not waited for."""

    def __init__(self, *, forever: bool) -> None:
        self._forever = forever
        self.done = False

    async def hand_over(self, patience: float) -> None:
        if self._forever and patience:
            await asyncio.get_running_loop().create_future()
        self.done = True

    stop = hand_over


@pytest.mark.parametrize("slow", ["node", "server"])
def test_who_insists_does_not_wait(slow: str) -> None:
    async def main() -> None:
        node, server, hurry = Ending(forever=slow == "node"), Ending(forever=slow == "server"), asyncio.Event()
        ending = asyncio.create_task(_hand_over(node, server, hurry))  # type: ignore[arg-type]
        for _ in range(10):
            await asyncio.sleep(0)
        assert not ending.done()
        assert (node.done, server.done) == (slow == "server", False)
        hurry.set()
        await ending
        assert server.done
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_without_insisting_all_is_handed_over_and_answered() -> None:
    async def main() -> None:
        node, server = Ending(forever=False), Ending(forever=False)
        await _hand_over(node, server, asyncio.Event())  # type: ignore[arg-type]
        assert (node.done, server.done) == (True, True)

    asyncio.run(main())


class Failing(Ending):
    """A node whose disk fails while it hands over."""

    reconfigure = None
    users = Mock()

    def __init__(self, config: object, *, on_fatal: Callable[[BaseException], None], **_: object) -> None:
        super().__init__(forever=True)
        self._on_fatal = on_fatal
        # As somebody asks for an end.
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGTERM)

    async def start(self) -> None:
        pass

    close = start

    def add_problems(self, source: object) -> None:
        pass

    def cluster_map(self) -> None:
        pass

    async def hand_over(self, patience: float) -> None:
        self._on_fatal(StorageError("the disk is gone"))
        await super().hand_over(patience)


class Server(Ending):
    def __init__(self, *_: object, **__: object) -> None:
        super().__init__(forever=False)
        self.problems = ()

    async def start(self) -> None:
        pass


@pytest.mark.usefixtures("as_before")
def test_a_node_that_fails_while_it_ends_says_so_and_does_not_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(main, "RaftNode", Failing)
    monkeypatch.setattr(main, "GrpcServer", Server)
    # What it changes for the whole process.
    monkeypatch.setattr(main, "gc", Mock())
    monkeypatch.setattr(main, "_sweep", Mock())
    monkeypatch.setattr(main, "Audit", Mock())
    code = asyncio.run(main._serve(config(), config, Mock(), SystemClock(), None, Mock()))
    assert code == 1
    assert caplog.records[-1].getMessage() == "node stopped: the disk is gone"
