"""Guarantee: programs end, at once and quietly, whatever they did with their clients; close ends every call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raftkv.testing import LocalCluster
from tests.client_scripts import Ended, run


@pytest.fixture(scope="module")
def endpoints() -> Iterator[str]:
    with LocalCluster(nodes=1, groups=1) as cluster:
        with_records = cluster.endpoints
        assert run("with Client(E) as kv: [kv.put(f'r{i}', b'v') for i in range(50)]", with_records).code == 0
        yield with_records


OPEN = """
kv = Client(E)
kv.put("k", b"v")
"""

SYNC = {
    "left open": "",
    "in the middle of an iterator": "page = kv.scan(); next(page)",
    "an iterator that is still running in a thread": """
threading.Thread(target=lambda: [time.get_clock_info and kv.get("k") for _ in kv.scan()], daemon=True).start()
""",
    "in a function": """
def f():
    other = Client(E)
    other.put("k", b"v")
f()
kv.close()
""",
    "a destructor that calls it": """
class Cache:
    def __init__(self, kv):
        self.kv = kv
    def __del__(self):
        print(name(lambda: self.kv.get("k")) in ("UsageError", "RuntimeError"))
cache = Cache(kv)
""",
    "a function of atexit": "atexit.register(lambda: print(kv.get('k').value == b'v'))",
    "a function of atexit with a client of its own": "atexit.register(lambda: print(use() == b'v'))",
    "daemon threads in calls": """
def forever():
    while True:
        kv.get("k")
        kv.put("t", b"v")
for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
kv.get("k")
""",
    "sys.exit": "next(kv.scan()); print(True); sys.exit(3)",
    "sys.exit in a thread's way": """
threading.Thread(target=lambda: [kv.get("k") for _ in range(20)]).start()
sys.exit(3)
""",
}


def check(ended: Ended, unclosed: list[str]) -> None:
    assert ended.noise == []
    assert ended.warnings == unclosed
    assert set(ended.out) <= {"True"}


@pytest.mark.parametrize("program", SYNC.values(), ids=SYNC)
def test_a_client_that_is_not_closed_holds_nothing_up(endpoints: str, program: str) -> None:
    for _ in range(3):
        ended = run(OPEN + program, endpoints)
        check(ended, ["Client"])
        assert ended.code == (3 if "sys.exit(3)" in program else 0)


def test_a_client_that_is_closed_is_not_mentioned(endpoints: str) -> None:
    ended = run(OPEN + "kv.close(); kv.close(); del kv; print(use() == b'v'); asyncio.run(use_async())", endpoints)
    check(ended, [])


ASYNC = {
    "one after the other": "asyncio.run(main()); asyncio.run(main())",
    "kept": "kept = []; asyncio.run(main(kept)); asyncio.run(main(kept))",
    "with calls in flight": "asyncio.run(main(calls=50)); asyncio.run(main(calls=50))",
    "with an iterator": "asyncio.run(main(page=True)); asyncio.run(main(page=True))",
    "with uvloop": "import uvloop; uvloop.run(main()); uvloop.run(main())",
    "collected while the loop runs": """
async def many():
    for _ in range(2):
        await main()
        gc.collect()
        await use_async()
asyncio.run(many())
""",
    "beside another loop": """
with Client(E) as kv:
    done = threading.Event()
    thread = threading.Thread(target=lambda: (asyncio.run(main()), asyncio.run(main()), done.set()))
    thread.start()
    while not done.is_set():
        kv.get("k")
    thread.join()
""",
}


@pytest.mark.parametrize("program", ASYNC.values(), ids=ASYNC)
def test_loops_end_with_clients_that_are_not_closed(endpoints: str, program: str) -> None:
    begin = """
async def main(kept=None, calls=0, page=False):
    kv = AsyncClient(E)
    if kept is not None:
        kept.append(kv)
    await kv.put("k", b"v")
    for number in range(calls):
        asyncio.ensure_future(kv.put(f"k{number}", b"v"))
    if page:
        await anext(kv.scan())
    await asyncio.sleep(0)
"""
    for _ in range(3):
        ended = run(begin + program, endpoints)
        assert ended.code == 0
        check(ended, ["AsyncClient", "AsyncClient"])


def test_loops_with_clients_that_are_closed_do_not_hear_of_each_other(endpoints: str) -> None:
    ended = run(
        """
        done = threading.Event()

        def churn():
            for _ in range(30):
                asyncio.run(use_async())
            done.set()

        threading.Thread(target=churn).start()
        with Client(E) as kv:
            while not done.is_set():
                kv.get("k")
        """,
        endpoints,
    )
    assert (ended.code, ended.errors) == (0, "")


def test_a_client_is_of_one_loop(endpoints: str) -> None:
    ended = run(
        """
        kv = AsyncClient(E)
        asyncio.run(kv.put("k", b"v"))
        print(name(lambda: asyncio.run(kv.get("k"))), name(lambda: asyncio.run(kv.close())))
        """,
        endpoints,
    )
    assert (ended.code, ended.out, ended.warnings, ended.noise) == (0, ["UsageError UsageError"], ["AsyncClient"], [])


def test_an_interrupt_ends_a_call_and_a_second_one_the_program(endpoints: str) -> None:
    # Nobody listens at port 1: the call would go on for a minute.
    ended = run(
        """
        kv = Client("127.0.0.1:1", timeout=60)
        started = threading.Event()

        def interrupt():
            started.wait()
            # A signal between the last instruction and the wait is seen only after it: look that it waits.
            seen = 0
            while seen < 20:
                frame = sys._current_frames()[threading.main_thread().ident]
                seen = seen + 1 if frame.f_code.co_name == "wait" else 0
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        told = []
        for _ in range(2):
            started.clear()
            threading.Thread(target=interrupt, daemon=True).start()
            try:
                started.set()
                kv.put("k", b"v")
            except KeyboardInterrupt:
                told.append("interrupted")
        print(*told)
        kv.close()
        """,
        endpoints,
    )
    assert (ended.code, ended.out, ended.errors) == (0, ["interrupted interrupted"], "")


def test_close_ends_the_calls_of_other_threads_with_errors_of_raftkv(endpoints: str) -> None:
    ended = run(
        """
        told = collections.Counter()
        for _ in range(5):
            kv = Client(E)
            kv.put("k", b"v")
            under_way = threading.Barrier(9)

            def forever(number):
                under_way.wait()
                try:
                    while True:
                        if number % 4 == 0:
                            list(kv.scan())
                        elif number % 4 == 1:
                            kv.status()
                        elif number % 4 == 2:
                            kv.put(f"k{number}", b"v")
                        else:
                            kv.get("k")
                except RaftKVError as error:
                    told["UsageError" if "closed" in str(error) else repr(error)] += 1
                except BaseException as error:
                    told[repr(error)] += 1

            threads = [threading.Thread(target=forever, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            under_way.wait()
            closing = [threading.Thread(target=kv.close) for _ in range(3)]
            for thread in closing:
                thread.start()
            for thread in closing + threads:
                thread.join()
        print(dict(told))
        print(name(lambda: kv.get("k")), name(lambda: next(kv.scan())), name(kv.__enter__))
        """,
        endpoints,
    )
    assert (ended.code, ended.errors) == (0, "")
    assert ended.out == ["{'UsageError': 40}", "UsageError UsageError UsageError"]


def test_close_in_the_loop_ends_its_calls_too(endpoints: str) -> None:
    ended = run(
        """
        async def main():
            kv = AsyncClient(E)
            await kv.put("k", b"v")
            calls = [asyncio.ensure_future(kv.put("k", b"v")) for _ in range(20)]
            calls += [asyncio.ensure_future(kv.get("k")) for _ in range(20)]
            calls += [asyncio.ensure_future(kv.count()) for _ in range(5)]
            closing = []
            calls[0].add_done_callback(lambda _: closing.append(asyncio.ensure_future(kv.close())))
            calls[20].add_done_callback(lambda _: closing.append(asyncio.ensure_future(kv.aclose())))
            ends = await asyncio.gather(*calls, return_exceptions=True)
            await asyncio.gather(*closing)
            print(all(not isinstance(end, BaseException) or isinstance(end, RaftKVError) for end in ends))
            try:
                await kv.get("k")
            except UsageError as error:
                print(error)

        asyncio.run(main())
        """,
        endpoints,
    )
    assert (ended.code, ended.out, ended.errors) == (0, ["True", "the client is closed"], "")


def test_a_close_that_is_cancelled_goes_on(endpoints: str) -> None:
    ended = run(
        """
        async def main():
            kv = AsyncClient(E)
            await kv.put("k", b"v")
            closing = asyncio.ensure_future(kv.close())
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
            await kv.close()
            # gRPC's thread ends by itself once the last channel is gone.
            until = time.monotonic() + 30
            while any("_poll_wrapper" in thread.name for thread in threading.enumerate()) and time.monotonic() < until:
                await asyncio.sleep(0.01)
            print(any("_poll_wrapper" in thread.name for thread in threading.enumerate()))

        asyncio.run(main())
        """,
        endpoints,
    )
    assert (ended.code, ended.out, ended.errors) == (0, ["False"], "")


def test_aclose_is_what_aclosing_calls(endpoints: str) -> None:
    ended = run(
        """
        from contextlib import aclosing

        async def main():
            async with aclosing(AsyncClient(E)) as kv:
                await kv.put("k", b"v")
                print((await kv.get("k")).value)
            try:
                await kv.get("k")
            except UsageError as error:
                print(error)

        asyncio.run(main())
        """,
        endpoints,
    )
    assert (ended.code, ended.out, ended.errors) == (0, ["b'v'", "the client is closed"], "")


def test_nothing_of_grpcs_log_is_on_stderr_unless_it_is_asked_for(endpoints: str) -> None:
    program = """
    import subprocess

    with Client(E + ",127.0.0.1:1,nosuchhost.invalid:1") as kv:
        kv.get("k")
        kv.status(timeout=5)
        subprocess.run(["true"], check=True, preexec_fn=os.getpid)
    """
    assert run(program, endpoints).errors == ""
    asked = {"GRPC_VERBOSITY": "INFO", "GRPC_ENABLE_FORK_SUPPORT": "1"}
    assert "fork_posix" in run(program, endpoints, environment=asked).errors
