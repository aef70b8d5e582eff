"""Guarantee: a forked process can have clients, or is told at once why not; its parent notices nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raftkv.testing import LocalCluster
from tests.client_scripts import run


@pytest.fixture(scope="module")
def endpoints() -> Iterator[str]:
    with LocalCluster(nodes=1, groups=1) as cluster:
        yield cluster.endpoints


def test_after_all_clients_are_closed_children_make_their_own(endpoints: str) -> None:
    ended = run(
        """
        told = collections.Counter()
        for _ in range(20):
            use()
            told[forked(use)] += 1
            asyncio.run(use_async())
            told[forked(lambda: asyncio.run(use_async()))] += 1
        print(dict(told))
        print(use())
        """,
        endpoints,
    )
    assert (ended.code, ended.out) == (0, ["{\"b'v'\": 40}", "b'v'"])
    assert ended.errors == ""


def test_close_ends_grpc_without_the_garbage_collector(endpoints: str) -> None:
    # Else a fork would find its threads, and whether it did would depend on when garbage was collected last.
    ended = run(
        """
        gc.disable()
        kept = []

        def grpc_ends():
            # It has been told to; its thread may need a moment.
            end = time.monotonic() + 60
            while any("_poll_wrapper" in thread.name for thread in threading.enumerate()):
                if time.monotonic() > end:
                    return False
                time.sleep(0.001)
            return True

        def sync(do):
            with Client(E + ",127.0.0.1:1") as kv:
                kept.append(kv)
                kv.put("a", "b")
                do(kv)

        async def unclosed():
            kept.append(AsyncClient(E))
            await kept[-1].put("a", "b")

        async def busy():
            async with AsyncClient(E) as kv:
                kept.append(kv)
                await kv.get("a")
                calls = [asyncio.ensure_future(kv.put(f"k{i}", "v")) for i in range(20)]
                calls += [asyncio.ensure_future(kv.count()) for _ in range(4)]
                await asyncio.sleep(0)
            await asyncio.gather(*calls, return_exceptions=True)

        for _ in range(5):
            sync(lambda kv: kv.get("a"))
            sync(lambda kv: next(kv.scan()))
            sync(lambda kv: kv.status(timeout=5))
            assert grpc_ends(), "after close"
            asyncio.run(use_async())
            asyncio.run(busy())
            asyncio.run(unclosed())
            assert grpc_ends(), "after the loop"
        print("ended")
        """,
        endpoints,
    )
    assert (ended.code, ended.out, ended.noise) == (0, ["ended"], [])


def test_while_a_client_is_open_children_are_told_so_at_once(endpoints: str) -> None:
    ended = run(
        """
        kv = Client(E)
        kv.put("k", b"v")
        told = collections.Counter()
        begun = time.monotonic()

        def child():
            try:
                kv.get("k")
            except UsageError as error:
                assert "made before a fork" in str(error) and "spawn" in str(error)
            kv.close()
            for make in (Client, AsyncClient):
                try:
                    make(E)
                except UsageError as error:
                    assert "close all clients before the fork" in str(error) and "spawn" in str(error)
            return time.monotonic() - begun < 4

        for _ in range(20):
            begun = time.monotonic()
            told[forked(child)] += 1
            assert kv.get("k").value == b"v"
        print(dict(told))
        kv.close()
        print(forked(use))
        """,
        endpoints,
    )
    assert (ended.code, ended.out, ended.errors) == (0, ["{'True': 20}", "b'v'"], "")


def test_forks_in_a_loop_beside_calls_and_in_a_thread(endpoints: str) -> None:
    ended = run(
        """
        async def main():
            told = collections.Counter()
            async with AsyncClient(E) as kv:
                await kv.put("k", b"v")
                for _ in range(10):
                    calls = [asyncio.ensure_future(kv.get("k")) for _ in range(50)]
                    await asyncio.sleep(0)
                    told[forked(use)] += 1
                    assert {one.value for one in await asyncio.gather(*calls)} == {b"v"}
            print(dict(told), forked(use))

        asyncio.run(main())
        thread = threading.Thread(target=lambda: print(forked(use)))
        thread.start()
        thread.join()
        """,
        endpoints,
    )
    assert (ended.code, ended.errors) == (0, "")
    assert ended.out == ["{\"'UsageError'\": 10} b'v'", "b'v'"]


def test_children_of_children(endpoints: str) -> None:
    ended = run(
        """
        use()
        print(forked(lambda: (use(), forked(use))))
        with Client(E) as kv:
            kv.get("k")
            print(forked(lambda: forked(use)))
        """,
        endpoints,
    )
    assert (ended.code, ended.errors) == (0, "")
    assert ended.out == ["(b'v', \"b'v'\")", "\"'UsageError'\""]


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ("import grpc.aio; Client", "[b'v', b'v', b'v', b'v']"),
        ("use()", "[b'v', b'v', b'v', b'v']"),
        ("kv = Client(E); kv.get('k')", "['UsageError', 'UsageError', 'UsageError', 'UsageError']"),
    ],
    ids=["only imported", "used and closed", "open"],
)
def test_pools_of_forked_processes(endpoints: str, before: str, told: str) -> None:
    ended = run(
        f"""
        {before}

        def work(_):
            return name(use)

        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(work, range(4)))
        kv = Client(E)
        assert kv.get("k").value == b"v"
        kv.close()
        os._exit(0) if sys.stdout.flush() else None
        """,
        endpoints,
    )
    assert (ended.code, ended.out, ended.noise) == (0, [told], [])


def test_a_child_that_ends_as_programs_do_harms_nothing(endpoints: str) -> None:
    ended = run(
        """
        use()

        def child():
            global left
            left = Client(E)
            return left.get("k").value

        print(forked(child, hard=False))
        kv = Client(E)
        kv.put("k", b"v")
        page = kv.scan()
        next(page)
        for _ in range(5):
            print(forked(lambda: name(lambda: kv.get("k")), hard=False))
        print(kv.get("k").value, len(list(page)) >= 0)
        kv.close()
        """,
        endpoints,
    )
    assert (ended.code, ended.out) == (0, ["b'v'", *["'UsageError'"] * 5, "b'v' True"])
    assert ended.warnings == ["Client"], "of the child's own client, and not of its parent's"
    assert ended.noise == []


def test_commands_can_be_run_beside_a_client(endpoints: str) -> None:
    ended = run(
        """
        import subprocess

        with Client(E) as kv:
            kv.put("k", b"v")
            for _ in range(5):
                subprocess.run(["true"], check=True)
                subprocess.run(["true"], check=True, preexec_fn=os.getpid)
                assert kv.get("k").value == b"v"
        """,
        endpoints,
    )
    assert (ended.code, ended.errors) == (0, "")
