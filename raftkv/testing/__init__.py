"""For tests of programs that use raftkv: real clusters, and one in memory.

    with LocalCluster(nodes=3, groups=2) as cluster, raftkv.Client(cluster.endpoints) as kv:
        ...

    with FakeClient() as kv:
        kv.put("k", b"v")

pytest has fixtures of both: docs/testing.md. The names are loaded when they are first used: the cluster in memory needs
no part of a node's installation, ``raftkv[server]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from raftkv.testing.cluster import LocalCluster
    from raftkv.testing.fake import FakeAsyncClient, FakeClient, FakeCluster

__all__ = ["FakeAsyncClient", "FakeClient", "FakeCluster", "LocalCluster"]

_HOMES: Final = {
    "FakeAsyncClient": "raftkv.testing.fake",
    "FakeClient": "raftkv.testing.fake",
    "FakeCluster": "raftkv.testing.fake",
    "LocalCluster": "raftkv.testing.cluster",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'raftkv.testing' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(home), name)
