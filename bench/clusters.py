"""Clusters to be measured, whose leaders are where they are to be before anything is."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.scenarios import BenchShape
from raftkv.errors import RaftKVError
from raftkv.testing import LocalCluster


class NotPlaced(RaftKVError):
    """Leaders did not take the places that they were to have."""


@contextlib.contextmanager
def cluster(shape: BenchShape, folder: Path, raft: Mapping[str, Any] | None = None) -> Iterator[LocalCluster]:
    """Node processes that keep their data in ``folder``; ``raft``: keys of that section of their configuration.

    Raises NotPlaced.
    """
    with LocalCluster(shape.nodes, shape.groups, folder=folder, node={"reads": shape.reads}, raft=raft) as made:
        if shape.groups > 1:
            command = [sys.executable, "-m", "raftkv.cli.admin", "--endpoints", made.endpoints, "leader", "balance"]
            command += ["--over", str(shape.leaders)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise NotPlaced(done.stderr.strip() or f"leader balance ended with {done.returncode}")
        yield made
