"""Guarantee: a signal ends a node only if it means to; who insists does not wait."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from raftkv.node import signals
from raftkv.node.main import _hand_over

Handlers = dict[int, Callable[[], None]]


class Loop:
    """Keeps the handlers that are set."""

    def __init__(self) -> None:
        self.handlers: Handlers = {}

    def add_signal_handler(self, number: int, call: Callable[..., None], *arguments: Any) -> None:
        self.handlers[number] = lambda: call(*arguments)


def handlers() -> tuple[Handlers, list[Any]]:
    loop, heard = Loop(), list[Any]()
    signals.handle(loop, heard.append, lambda: heard.append("reload"))  # type: ignore[arg-type]
    return loop.handlers, heard


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
def test_what_signals_ask_for(sent: list[str], heard: list[Any]) -> None:
    known, got = handlers()
    for name in sent:
        known[signal.Signals[name]]()
    assert got == heard


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
