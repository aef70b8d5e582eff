"""The pytest plugin that comes with raftkv: fixtures of clusters and clients.

A cluster of three nodes with three shard groups: ``raftkv_cluster`` is new for each test, ``raftkv_module_cluster`` and
``raftkv_session_cluster`` are shared. Tests that share one keep their keys apart by ``raftkv_namespace``, a prefix of
their own. ``raftkv_client`` and ``raftkv_async_client`` are clients of the shared cluster of the session, and remove
what a test has left under its prefix. ``raftkv_fake_client`` and ``raftkv_fake_async_client`` are clients of a cluster
in memory, new for each test. Asynchronous fixtures work with pytest-asyncio and with anyio, on asyncio.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from raftkv import AsyncClient, Client
    from raftkv.testing import FakeAsyncClient, FakeClient, LocalCluster

_RUNNING: Final = pytest.StashKey[dict[str, "LocalCluster"]]()

# In its strict mode pytest-asyncio runs only fixtures that it has made.
_async_fixture: Callable[..., Any] = (
    import_module("pytest_asyncio").fixture if find_spec("pytest_asyncio") else pytest.fixture
)


def _cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """A running cluster of three nodes with three shard groups; its logs go with a failure."""
    from raftkv.testing import LocalCluster

    running = request.config.stash.setdefault(_RUNNING, {})
    name = str(request.fixturename)
    with LocalCluster() as cluster:
        running[name] = cluster
        try:
            yield cluster
        finally:
            del running[name]


raftkv_cluster = pytest.fixture(_cluster, name="raftkv_cluster")
raftkv_module_cluster = pytest.fixture(_cluster, scope="module", name="raftkv_module_cluster")
raftkv_session_cluster = pytest.fixture(_cluster, scope="session", name="raftkv_session_cluster")


@pytest.fixture
def raftkv_namespace(request: pytest.FixtureRequest) -> str:
    """A prefix of keys that no other test has."""
    return f"{request.node.name[:64]}-{uuid.uuid4().hex}/"


@pytest.fixture
def raftkv_client(raftkv_session_cluster: LocalCluster, raftkv_namespace: str) -> Iterator[Client]:
    """A client of the session's cluster; what is left under ``raftkv_namespace`` is removed after the test."""
    from raftkv import Client

    with Client(raftkv_session_cluster.endpoints) as client:
        yield client
        client.delete_prefix(raftkv_namespace)


@_async_fixture
async def raftkv_async_client(
    raftkv_session_cluster: LocalCluster, raftkv_namespace: str
) -> AsyncIterator[AsyncClient]:
    """As ``raftkv_client``, for asyncio."""
    from raftkv import AsyncClient

    async with AsyncClient(raftkv_session_cluster.endpoints) as client:
        yield client
        await client.delete_prefix(raftkv_namespace)


@pytest.fixture
def raftkv_fake_client() -> Iterator[FakeClient]:
    """A client of a cluster in memory."""
    from raftkv.testing import FakeClient

    with FakeClient() as client:
        yield client


@_async_fixture
async def raftkv_fake_async_client() -> AsyncIterator[FakeAsyncClient]:
    """A client of a cluster in memory, for asyncio."""
    from raftkv.testing import FakeAsyncClient

    async with FakeAsyncClient() as client:
        yield client


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and report.when == "call":
        for fixture, cluster in item.config.stash.get(_RUNNING, {}).items():
            if fixture in getattr(item, "fixturenames", ()):
                report.sections += [(f"log of {name}", text) for name, text in cluster.logs().items()]
    return report
