"""Guarantee: where no client can work, making one says so at once; what gRPC is told can be overruled."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from contextlib import aclosing
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakSet

import pytest
from grpc import aio

import raftkv
from raftkv.client import process
from raftkv.client.background import Background
from raftkv.client.transport import GrpcTransport, connect
from raftkv.errors import OutcomeUnknown, UsageError
from raftkv.v1 import kv_pb2

MAKERS = [
    lambda: raftkv.Client("h:1"),
    lambda: raftkv.AsyncClient("h:1"),
    GrpcTransport,
    lambda: connect("h:1"),
]


def patcher(name: str, asked: str, patched: set[str]) -> ModuleType:
    module = ModuleType(name)
    setattr(module, asked, patched.__contains__)
    return module


@pytest.mark.parametrize("make", MAKERS, ids=["Client", "AsyncClient", "GrpcTransport", "connect"])
@pytest.mark.parametrize(
    ("module", "asked", "part"),
    [
        ("gevent.monkey", "is_module_patched", "threading"),
        ("gevent.monkey", "is_module_patched", "socket"),
        ("eventlet.patcher", "is_monkey_patched", "thread"),
        ("eventlet.patcher", "is_monkey_patched", "socket"),
    ],
)
def test_among_threads_that_are_none_no_client_is_made(
    monkeypatch: pytest.MonkeyPatch, make: object, module: str, asked: str, part: str
) -> None:
    monkeypatch.setitem(sys.modules, module, patcher(module, asked, {part}))
    before = threading.active_count()
    with pytest.raises(UsageError, match=module.split(".", maxsplit=1)[0]):
        make()  # type: ignore[operator]
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("module", "asked", "patched"),
    [
        ("gevent.monkey", "is_module_patched", set()),
        ("gevent.monkey", "is_module_patched", {"time", "subprocess"}),
        ("eventlet.patcher", "is_monkey_patched", {"time"}),
    ],
)
def test_a_library_that_has_only_been_loaded_is_no_reason(
    monkeypatch: pytest.MonkeyPatch, module: str, asked: str, patched: set[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, patcher(module, asked, patched))
    process.check_process()


def test_after_a_fork_with_grpc_running_no_client_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_grpc_lost", True)
    with pytest.raises(UsageError, match=r"close all clients before the fork.*first one in the new process.*'spawn'"):
        raftkv.Client("h:1")


class Tasks:
    """The threads that Linux tells of, in place of this process's own; what other tests left of gRPC does not count."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root = root
        self.looks = 0
        monkeypatch.setattr(process, "_TASKS", root)
        monkeypatch.setattr(process, "_channels", WeakSet())
        monkeypatch.setattr(process, "_staying", frozenset())
        monkeypatch.setattr(process, "_PAUSE", 0)
        monkeypatch.setattr(process, "_TRIES", 50)
        enumerate_all = threading.enumerate
        left = [thread for thread in enumerate_all() if process._POLLER in thread.name]
        monkeypatch.setattr(threading, "enumerate", lambda: [one for one in enumerate_all() if one not in left])
        look = process._foreign_threads

        def counted() -> dict[int | None, str]:
            self.looks += 1
            self.change()
            return look()

        monkeypatch.setattr(process, "_foreign_threads", counted)

    def change(self) -> None:
        """Called before each look."""

    def begin(self, task: int, name: str | None) -> None:
        """``name`` is None for one that ends while it is asked for its name."""
        (self._root / str(task)).mkdir(exist_ok=True)
        if name is not None:
            (self._root / str(task) / "comm").write_text(name + "\n")

    def end(self, task: int) -> None:
        (self._root / str(task) / "comm").unlink()
        (self._root / str(task)).rmdir()


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tasks:
    return Tasks(tmp_path, monkeypatch)


GRPC = ["event_engine", "lifeguard", "grpc_global_tim", "grpc_shutdown"]


@pytest.mark.parametrize("name", GRPC)
def test_grpc_runs_while_it_has_a_thread(tasks: Tasks, name: str) -> None:
    assert not process._grpc_runs()
    tasks.begin(1, name)
    assert process._grpc_runs()


def test_a_thread_that_ends_hides_no_other(tasks: Tasks) -> None:
    for task in range(1, 20):
        tasks.begin(task, "event_engine" if task == 10 else None)
    assert process._grpc_runs()


def test_grpc_does_not_run_once_its_threads_have_ended(tasks: Tasks) -> None:
    tasks.begin(1, "event_engine")
    tasks.change = lambda: tasks.end(1) if tasks.looks == 10 else None  # type: ignore[method-assign]
    assert not process._grpc_runs()
    assert tasks.looks == 10


def test_a_thread_that_has_no_name_of_its_own_yet_is_waited_for(tasks: Tasks) -> None:
    tasks.begin(1, "python")
    tasks.change = lambda: tasks.begin(1, "event_engine") if tasks.looks == 10 else None  # type: ignore[method-assign]
    assert process._grpc_runs()


def test_threads_of_others_are_waited_for_once_and_are_no_reason(tasks: Tasks) -> None:
    tasks.begin(1, "python")
    tasks.begin(2, "worker")
    assert not process._grpc_runs()
    assert tasks.looks == 51
    assert not process._grpc_runs()
    assert tasks.looks == 52
    tasks.begin(3, "event_engine")
    assert process._grpc_runs()
    assert tasks.looks == 103


def test_threads_of_python_are_not_waited_for(tasks: Tasks) -> None:
    ending = threading.Event()
    thread = threading.Thread(target=ending.wait)
    thread.start()
    for task in (threading.get_native_id(), thread.native_id):
        assert task is not None
        tasks.begin(task, "grpc_user")
    try:
        assert not process._grpc_runs()
        assert tasks.looks == 1
    finally:
        ending.set()
        thread.join()


def test_the_thread_of_grpc_aio_is_waited_for(tasks: Tasks) -> None:
    ending = threading.Event()
    poller = threading.Thread(target=ending.wait, name="Thread-1 (_poll_wrapper)")
    poller.start()

    def end() -> None:
        if tasks.looks == 10:
            ending.set()
            poller.join()

    try:
        assert process._grpc_runs()
        tasks.looks, tasks.change = 0, end  # type: ignore[method-assign]
        process._staying = frozenset()
        assert not process._grpc_runs()
    finally:
        ending.set()
        poller.join()


def test_while_a_channel_exists_nothing_is_waited_for(tasks: Tasks) -> None:
    class Channel:
        pass

    channel = Channel()
    process.keep_after_fork(channel, channel=True)
    assert process._grpc_runs()
    assert tasks.looks == 0
    del channel
    assert not process._grpc_runs()


def test_each_client_that_is_not_closed_warns_once() -> None:
    client = raftkv.Client("127.0.0.1:1")
    with pytest.warns(ResourceWarning, match="unclosed <raftkv.client.sync.Client") as warned:
        del client
    assert len(warned) == 1
    other = raftkv.AsyncClient("127.0.0.1:1")
    with pytest.warns(ResourceWarning, match="unclosed <raftkv.client.aio.AsyncClient") as warned:
        del other
    assert len(warned) == 1
    with pytest.raises(raftkv.InvalidArgument):
        raftkv.Client("nowhere")
    with pytest.raises(raftkv.InvalidArgument):
        raftkv.AsyncClient("127.0.0.1:1", timeout=0)


def test_a_client_that_was_never_used_closes_and_is_closed_then() -> None:
    async def main() -> None:
        async with aclosing(raftkv.AsyncClient("127.0.0.1:1")) as kv:
            pass
        await kv.close()
        with pytest.raises(UsageError, match="closed"):
            await kv.get("k")

    asyncio.run(main())


def test_a_call_that_comes_as_the_loop_ends_hears_of_it() -> None:
    async def last() -> None:
        return None

    async def work() -> int:
        return 1

    for _ in range(20):
        background = Background("test", last)
        assert background.run(work()) == 1
        ends: list[object] = []

        def ask(background: Background, ends: list[object]) -> None:
            while True:
                try:
                    background.run(work())
                except UsageError as error:
                    ends.append(str(error))
                    return

        callers = [threading.Thread(target=ask, args=(background, ends)) for _ in range(4)]
        for caller in callers:
            caller.start()
        background.end()
        background.end()
        background.join()
        for caller in callers:
            caller.join(30)
        assert ends == ["the client is closed"] * 4
        background.end()
        background.start(work)


def test_a_call_that_does_not_end_by_itself_is_cancelled_as_the_loop_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftkv.client.background._PATIENCE", 0.01)

    async def last() -> None:
        return None

    background = Background("test", last)
    started = threading.Event()
    ended: list[str] = []

    async def wait() -> None:
        started.set()
        await asyncio.Event().wait()

    def call() -> None:
        with pytest.raises(OutcomeUnknown, match="closed"):
            background.run(wait())
        ended.append("told")

    caller = threading.Thread(target=call)
    caller.start()
    assert started.wait(30)
    background.end()
    background.join()
    caller.join(30)
    assert ended == ["told"]


@pytest.mark.parametrize("given", [{}, {"GRPC_VERBOSITY": "ERROR", "GRPC_EXPERIMENTS": ""}])
def test_what_grpc_is_told_can_be_overruled(given: dict[str, str]) -> None:
    names = ("GRPC_VERBOSITY", "GRPC_EXPERIMENTS")
    rest = {name: value for name, value in os.environ.items() if name not in names}
    program = f"import raftkv, os; print([os.environ[name] for name in {names!r}])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**rest, **given}
    )
    told = given or {"GRPC_VERBOSITY": "NONE", "GRPC_EXPERIMENTS": "-event_engine_listener,-event_engine_client"}
    assert done.stdout.strip() == str([told[name] for name in names])


@pytest.mark.parametrize(
    "module", ["raftkv.client.transport", "raftkv.local.cluster", "raftkv.node.main", "raftkv.v1.kv_pb2_grpc"]
)
def test_grpc_is_told_before_it_is_loaded(module: str) -> None:
    rest = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    program = (
        "import builtins, os\n"
        "real = builtins.__import__\n"
        "def seen(name, *rest, **named):\n"
        "    if name.startswith('grpc'):\n"
        "        assert 'GRPC_VERBOSITY' in os.environ and 'GRPC_EXPERIMENTS' in os.environ, name\n"
        "    return real(name, *rest, **named)\n"
        "builtins.__import__ = seen\n"
        f"import {module}, sys\n"
        "assert 'grpc' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=rest)
    assert (done.returncode, done.stderr) == (0, "")


def test_only_what_grpc_says_to_a_loop_that_has_ended_is_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async def last() -> None:
        return None

    background = Background("test", last)
    event = "Exception in callback PollerCompletionQueue._handle_events(<loop>)()"
    ended = asyncio.new_event_loop()
    ended.close()
    with pytest.raises(RuntimeError) as late:
        ended.call_soon_threadsafe(print)
    background._loop.call_exception_handler({"message": event, "exception": late.value})
    assert caplog.messages == []
    for message, error in ((event, RuntimeError("other")), (event, ValueError("x")), ("a callback", late.value)):
        background._loop.call_exception_handler({"message": message, "exception": error})
        assert caplog.messages.pop() == message
        caplog.clear()
    background.end()
    background.join()


@pytest.mark.parametrize("ask", ["view", "status", "open", "scan"])
def test_a_request_that_is_cancelled_leaves_nothing_to_the_garbage_collector(ask: str) -> None:
    """Else it would keep gRPC's channel, and a fork after ``close`` would find gRPC running."""

    async def main() -> None:
        endpoint = GrpcTransport().endpoint("127.0.0.1:1")
        request: Any = {"view": (5.0,), "status": (5.0,), "open": (), "scan": (kv_pb2.ScanRequest(), 5.0)}[ask]
        call = asyncio.ensure_future(getattr(endpoint, ask)(*request))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await endpoint.close()

    def calls() -> list[object]:
        return [one for one in gc.get_objects() if isinstance(one, aio.Call)]

    gc.collect()
    gc.disable()
    try:
        before = calls()
        asyncio.run(main())
        assert [one for one in calls() if all(one is not known for known in before)] == []
    finally:
        gc.enable()
