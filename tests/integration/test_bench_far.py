"""Clusters of ``bench run far``: what nodes tell each other is on its way for as long as was asked."""

from pathlib import Path

import pytest

from bench.clusters import cluster
from bench.scenarios import BenchShape
from faults.process.toxiproxy import ToxiproxyError
from raftkv import Client
from raftkv.clock import SystemClock
from tests import needs
from tests.waiting import PATIENCE

DELAY_MS = 30


def test_a_write_takes_a_round_trip(tmp_path: Path) -> None:
    needs.toxiproxy()
    shape, clock = BenchShape(groups=1, delay_ms=DELAY_MS), SystemClock()
    with cluster(shape, tmp_path) as made, Client(made.endpoints, timeout=PATIENCE) as client:
        client.put("k", b"v")
        began = clock.now()
        for _ in range(3):
            client.put("k", b"v")
        assert clock.now() - began >= 3 * 2 * DELAY_MS / 1000


def test_without_toxiproxy_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.far.find_server", lambda: None)
    with pytest.raises(ToxiproxyError, match="make toxiproxy"), cluster(BenchShape(delay_ms=1), tmp_path):
        pass
