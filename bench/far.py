"""Nodes that are far from each other, by Toxiproxy; clients are near all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

from faults.process.toxiproxy import STREAMS, Toxiproxy, ToxiproxyError, find_server
from raftkv.local.ports import free_ports


@contextlib.contextmanager
def links(nodes: int, delay_ms: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Arguments of a LocalCluster whose nodes' messages to each other arrive so much later. Raises ToxiproxyError."""
    server = find_server()
    if server is None:
        raise ToxiproxyError("clusters with delays need Toxiproxy: make toxiproxy builds it")
    at = [f"127.0.0.1:{port}" for port in free_ports(2 * nodes)]
    addresses = list(zip(at[::2], at[1::2], strict=True))
    with Toxiproxy(server, folder / "toxiproxy.log") as proxies:
        dial = {}
        for source, target in permutations(range(1, nodes + 1), 2):
            link = proxies.link(f"{source}-{target}", addresses[target - 1][1])
            for stream in STREAMS:
                link.add("latency", stream, latency=delay_ms, jitter=0)
            dial[source, target] = link.listen
        yield {"addresses": addresses, "dial": dial}
