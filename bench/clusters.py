"""Clusters to be measured, whose leaders are where they are to be before anything is."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench import far
from bench.scenarios import BenchShape
from raftkv.errors import RaftKVError
from raftkv.testing import LocalCluster


class NotPlaced(RaftKVError):
    """Leaders did not take the places that they were to have."""


@contextlib.contextmanager
def cluster(shape: BenchShape, folder: Path, raft: Mapping[str, Any] | None = None) -> Iterator[LocalCluster]:
    """Node processes that keep their data in ``folder``; ``raft``: keys of that section of their configuration.

    Raises NotPlaced, and ToxiproxyError if there are to be delays and the machine has no Toxiproxy.
    """
    with contextlib.ExitStack() as stack:
        links = stack.enter_context(far.links(shape.nodes, shape.delay_ms, folder)) if shape.delay_ms else {}
        node = {"reads": shape.reads}
        where = folder / "cluster"
        made = stack.enter_context(LocalCluster(shape.nodes, shape.groups, folder=where, node=node, raft=raft, **links))
        # One group's too: who was elected first hands over to the preferred node some seconds later.
        command = [sys.executable, "-m", "raftkv.cli.admin", "--endpoints", made.endpoints, "leader", "balance"]
        command += ["--over", str(shape.leaders)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NotPlaced(done.stderr.strip() or f"leader balance ended with {done.returncode}")
        yield made
