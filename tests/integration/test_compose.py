"""The files of docker-compose.yml work together: its nodes, its Toxiproxy, its links, run without containers."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import raftkv
from raftkv.clock import SystemClock
from raftkv.local.ports import free_ports
from raftkv.local.status import probe
from tests.needs import toxiproxy
from tests.waiting import PATIENCE, until

ROOT = Path(__file__).resolve().parents[2]
_CLOCK = SystemClock()
_CONFIG = "/etc/raftkv/node.toml"


class Containers:
    """The services of docker-compose.yml as processes; each address in their files becomes one of the loopback."""

    def __init__(self, folder: Path) -> None:
        self.services: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
        self.folder = folder
        self.nodes = [name for name in self.services if name.startswith("raftkv-")]
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._free = iter(free_ports(40))
        self._ports: dict[tuple[str, int], int] = {}
        self._published = {}
        for name, service in self.services.items():
            (folder / name).mkdir()
            for host, outside, inside in (entry.split(":") for entry in service.get("ports", ())):
                self._published[host, int(outside)] = (name, int(inside))

    def address(self, service: str, port: int) -> str:
        """Where ``port`` of a container is on this machine."""
        if (service, port) not in self._ports:
            self._ports[service, port] = next(self._free)
        return f"127.0.0.1:{self._ports[service, port]}"

    def published(self, port: int) -> str:
        """Where a port that the host publishes is."""
        return self.address(*self._published["127.0.0.1", port])

    def moved(self, text: str, service: str) -> str:
        """A file of ``service`` with the addresses and folders of this machine."""

        def move(found: re.Match[str]) -> str:
            host, port = found[1], int(found[2])
            if host == "127.0.0.1":
                return self.published(port)
            return self.address(service if host == "0.0.0.0" else host, port)

        names = "|".join(map(re.escape, self.services))
        text = re.sub(rf"(0\.0\.0\.0|127\.0\.0\.1|{names}):(\d+)", move, text)
        return text.replace("/var/lib/raftkv", str(self.folder / service / "data"))

    def file(self, service: str, inside: str) -> Path:
        """What is mounted at ``inside``, moved."""
        mounts = {target: source for source, target in (m.split(":")[:2] for m in self.services[service]["volumes"])}
        path = self.folder / service / Path(inside).name
        path.write_text(self.moved((ROOT / mounts[inside]).read_text(), service))
        return path

    def start_node(self, name: str) -> None:
        config = self.file(name, _CONFIG)
        arguments = [word.replace(_CONFIG, str(config)) for word in self.services[name]["command"]]
        self._run(name, [sys.executable, "-m", "raftkv.cli.main", *arguments])

    def start_toxiproxy(self, program: str) -> None:
        host, port = self.published(8474).split(":")
        config = self.file("toxiproxy", "/etc/toxiproxy.json")
        command = [word.replace("/etc/toxiproxy.json", str(config)) for word in self.services["toxiproxy"]["command"]]
        command = [word.replace("0.0.0.0", host) for word in command]
        self._run("toxiproxy", [program, *command, f"-port={port}"])

    def _run(self, name: str, command: list[str]) -> None:
        said = self.services[name].get("environment", {})
        environment = {**os.environ, **{key: re.sub(r"\$\{\w+:-(.*)\}", r"\1", text) for key, text in said.items()}}
        with (self.folder / name / "log").open("wb") as log:
            self.running[name] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    def health(self, name: str) -> int:
        """The exit code of the container's health check."""
        config = str(self.folder / name / Path(_CONFIG).name)
        words = [word.replace(_CONFIG, config) for word in self.services[name]["healthcheck"]["test"]]
        assert words[:2] == ["CMD", "raftkv"]
        command = [sys.executable, "-m", "raftkv.cli.main", *words[2:]]
        return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE, check=False).returncode

    def switch(self, proxy: str, *, on: bool) -> None:
        """Repair or cut the link of a proxy."""
        status, text = ask(self.published(8474), f"/proxies/{proxy}", json.dumps({"enabled": on}))
        assert status == 200, text

    def kill(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()


def ask(address: str, path: str, body: str | None = None) -> tuple[int, str]:
    host, port = address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    try:
        connection.request("GET" if body is None else "POST", path, body)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def answers(address: str) -> bool:
    try:
        return ask(address, "/version")[0] == 200
    except OSError:
        return False


@pytest.fixture
def containers(tmp_path: Path) -> Iterator[Containers]:
    program = toxiproxy()
    running = Containers(tmp_path)
    try:
        running.start_toxiproxy(program)
        until(lambda: answers(running.published(8474)), "Toxiproxy answers")
        for name in running.nodes:
            running.start_node(name)
        until(lambda: all(running.health(name) == 0 for name in running.nodes), "all nodes are healthy")
        yield running
    finally:
        running.kill()


def test_the_cluster_serves_and_every_link_of_it_can_be_cut(containers: Containers) -> None:
    endpoints = [containers.published(7401 + number) for number in range(3)]
    monitors = [containers.published(7601 + number) for number in range(3)]
    links = [f"{a}-to-{b}" for a in containers.nodes for b in containers.nodes if a != b]
    listed = json.loads(ask(containers.published(8474), "/proxies")[1])
    assert set(listed) == {*links, *(f"client-to-{name}" for name in containers.nodes)}

    with raftkv.Client(endpoints, timeout=PATIENCE) as kv:
        kv.put("container", b"here")

        # A client's link: the node is there for its peers and for other clients, not for those on the host.
        containers.switch("client-to-raftkv-1", on=False)
        with raftkv.Client(endpoints[0], timeout=1) as cut, pytest.raises(raftkv.Unavailable):
            cut.get("container")
        assert containers.health("raftkv-1") == 0
        kv.put("container", b"beside")
        containers.switch("client-to-raftkv-1", on=True)

        # One direction between two nodes: only that one is down.
        containers.switch("raftkv-1-to-raftkv-2", on=False)
        until(lambda: 'raftkv_peer_up{peer="2"} 0.0' in ask(monitors[0], "/metrics")[1], "one link is down")
        assert 'raftkv_peer_up{peer="3"} 1.0' in ask(monitors[0], "/metrics")[1]
        assert 'raftkv_peer_up{peer="1"} 1.0' in ask(monitors[1], "/metrics")[1]
        containers.switch("raftkv-1-to-raftkv-2", on=True)
        until(lambda: 'raftkv_peer_up{peer="2"} 1.0' in ask(monitors[0], "/metrics")[1], "it is up again")

        # All links of the node that leads group 1: the others go on without it.
        status = probe(endpoints[0])
        assert status is not None
        leader = next(one.leader for one in status.replicas if one.group == 1)
        around = [
            link for link in links if f"raftkv-{leader}" in (link.partition("-to-")[0], link.partition("-to-")[2])
        ]
        assert len(around) == 4
        for link in around:
            containers.switch(link, on=False)
        monitor = monitors[leader - 1]
        until(lambda: ask(monitor, "/readyz")[0] == 503, "the lonely node is not ready")
        assert ask(monitor, "/livez")[0] == 200
        others = [endpoint for number, endpoint in enumerate(endpoints, 1) if number != leader]
        with raftkv.Client(others, timeout=PATIENCE) as rest:
            for number in range(20):
                rest.put(f"alone:{number}", b"v")
        for link in around:
            containers.switch(link, on=True)
        until(lambda: all(ask(monitor, "/readyz")[0] == 200 for monitor in monitors), "all are ready")
        record = kv.get("container", consistency="quorum")
        assert record is not None
        assert record.value == b"beside"

    for name in containers.nodes:
        containers.running[name].send_signal(signal.SIGTERM)
    assert [containers.running[name].wait(20) for name in containers.nodes] == [0, 0, 0]
    assert containers.health("raftkv-1") == 3


def test_prometheus_finds_the_nodes_where_they_serve_metrics(containers: Containers) -> None:
    config = yaml.safe_load(containers.file("prometheus", "/etc/prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (targets,) = [one["targets"] for one in job["static_configs"]]
    scraped = [ask(target, job.get("metrics_path", "/metrics")) for target in targets]
    assert [status for status, _ in scraped] == [200, 200, 200]
    found = [re.findall(r'^raftkv_node_info\{.*node="(\d)"', text, re.MULTILINE) for _, text in scraped]
    assert found == [["1"], ["2"], ["3"]]
