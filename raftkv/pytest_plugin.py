"""The pytest plugin that comes with raftkv: the fixture ``raftkv_cluster``."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from raftkv.testing import LocalCluster

_CLUSTER: Final = pytest.StashKey["LocalCluster"]()


@pytest.fixture
def raftkv_cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """A running cluster of three nodes with three shard groups, new for each test; its logs go with a failure."""
    from raftkv.testing import LocalCluster

    with LocalCluster() as cluster:
        request.node.stash[_CLUSTER] = cluster
        yield cluster


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    cluster = item.stash.get(_CLUSTER, None)
    if cluster is not None and report.failed and report.when == "call":
        report.sections += [(f"log of {name}", text) for name, text in cluster.logs().items()]
    return report
