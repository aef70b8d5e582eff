"""Guarantee: the fixtures of the pytest plugin are what their descriptions say, for tests that share a cluster too."""

from __future__ import annotations

from typing import ClassVar

import pytest

from raftkv import AsyncClient, Client
from raftkv.testing import FakeAsyncClient, FakeClient, LocalCluster


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def raftkv_session_cluster(raftkv_module_cluster: LocalCluster) -> LocalCluster:
    """Else it would be up until the last test of all files has ended."""
    return raftkv_module_cluster


class TestSharing:
    """The tests of one class run in their order, on one cluster."""

    seen: ClassVar[list[str]] = []
    clusters: ClassVar[list[LocalCluster]] = []

    def test_a_client_and_a_prefix(
        self, raftkv_client: Client, raftkv_namespace: str, raftkv_module_cluster: LocalCluster
    ) -> None:
        self.clusters.append(raftkv_module_cluster)
        raftkv_client.put(f"{raftkv_namespace}k", b"v")
        self.seen.append(raftkv_namespace)
        assert raftkv_client.count(prefix=raftkv_namespace) == 1

    @pytest.mark.anyio
    async def test_what_one_left_is_gone_for_the_next(
        self, raftkv_async_client: AsyncClient, raftkv_namespace: str, raftkv_session_cluster: LocalCluster
    ) -> None:
        assert self.clusters == [raftkv_session_cluster], "tests of a module share it"
        assert len(raftkv_session_cluster.nodes) == 3
        assert raftkv_namespace not in self.seen
        assert [record async for record in raftkv_async_client.scan(prefix=self.seen[0])] == []
        await raftkv_async_client.put(f"{raftkv_namespace}k", b"v")


def test_a_client_in_memory(raftkv_fake_client: FakeClient) -> None:
    assert raftkv_fake_client.incr("n") == 1
    raftkv_fake_client.put("k", "v", ttl=10)
    raftkv_fake_client.cluster.advance(9.0)
    assert raftkv_fake_client.get("k") is not None
    raftkv_fake_client.cluster.advance(1.0)
    assert raftkv_fake_client.get("k") is None


@pytest.mark.anyio
async def test_a_client_in_memory_for_asyncio(raftkv_fake_async_client: FakeAsyncClient) -> None:
    assert await raftkv_fake_async_client.incr("n") == 1
