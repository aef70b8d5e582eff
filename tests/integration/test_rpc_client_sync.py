"""Guarantee: the synchronous client has the same calls, and a client is used only where it can be."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

import raftkv
from raftkv.errors import (
    ConditionFailed,
    UsageError,
)
from tests.rpc_fakes import FakeCluster
from tests.waiting import PATIENCE


def serve_in_thread() -> tuple[FakeCluster, Callable[[], None]]:
    """A fake cluster on a loop of its own, and what ends it."""
    cluster = FakeCluster()
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def serve() -> None:
        async with cluster:
            ready.set()
            await over.wait()

    def run() -> None:
        loop.run_until_complete(serve())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)

    def stop() -> None:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)

    return cluster, stop


def test_the_synchronous_client_has_the_same_calls() -> None:
    cluster, stop = serve_in_thread()
    try:
        with raftkv.Client(cluster.endpoints, timeout=PATIENCE) as kv:
            written = kv.put("k", b"v")
            assert kv.get("k") == raftkv.Record(b"k", b"v", written.version)
            with pytest.raises(ConditionFailed):
                kv.put("k", b"w", if_version=raftkv.ABSENT)
            assert kv.cas("k", b"v", b"w")
            assert [record.value for record in kv.scan()] == [b"w"]
            assert (kv.count(), kv.count(prefix="other")) == (1, 0)
            assert kv.status()[0].status is not None
            assert kv.delete("k")
            workers = [threading.Thread(target=kv.put, args=(f"t{i}", b"v")) for i in range(8)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            assert len(list(kv.scan())) == 8
        kv.close()
        with pytest.raises(UsageError, match="closed"):
            kv.get("k")
    finally:
        stop()


def test_importing_the_package_loads_no_engine_and_no_client() -> None:
    import subprocess
    import sys

    program = (
        "import raftkv, sys; print(sorted({'grpc', 'pysyncobj', 'asyncio', 'uvloop'} & set(sys.modules)));"
        "raftkv.AsyncClient; import raftkv.client.transport;"
        "print(sorted({'pysyncobj', 'raftkv.store.records', 'raftkv.store.meta'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
    assert set(raftkv.__all__) <= set(dir(raftkv))
    with pytest.raises(AttributeError):
        _ = raftkv.no_such_name
