"""The container files agree with each other, with the configuration's schema and with the repository."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from raftkv.addresses import parse_address, parse_listen_address
from raftkv.frontend.counters import Counters
from raftkv.frontend.http.metrics import registry
from raftkv.node.config import NodeConfig, load_config
from tests.rpc_fakes import MonitoredFake as Node

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


@pytest.fixture
def dockerfile() -> list[tuple[str, str]]:
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def mounted(service: dict[str, Any], inside: str) -> Path:
    """The file of the repository that a service finds at ``inside``."""
    sources: dict[str, str] = {target: source for source, target in (m.split(":")[:2] for m in service["volumes"])}
    return ROOT / sources[inside]


def configs(compose: dict[str, Any]) -> dict[str, NodeConfig]:
    """Service name -> the configuration that is mounted into it, of all nodes."""
    found = {}
    for name, service in compose["services"].items():
        if service["image"].startswith("raftkv:"):
            assert service["command"] == ["serve", "--config", "/etc/raftkv/node.toml"]
            found[name] = load_config(mounted(service, "/etc/raftkv/node.toml"))
    return found


def proxies(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> proxy, as Toxiproxy finds them at its start."""
    listed = json.loads(mounted(compose["services"]["toxiproxy"], "/etc/toxiproxy.json").read_text())
    found = {proxy["name"]: proxy for proxy in listed}
    assert len(found) == len(listed)
    return found


def test_three_nodes_of_one_cluster(compose: dict[str, Any]) -> None:
    nodes = configs(compose)
    assert sorted(config.node.id for config in nodes.values()) == [1, 2, 3]
    peers = {tuple((one.id, one.address, one.peer_address) for one in config.nodes) for config in nodes.values()}
    assert len(peers) == 1
    assert len({(config.cluster, config.raft) for config in nodes.values()}) == 1
    assert nodes.keys() == {f"raftkv-{config.node.id}" for config in nodes.values()}
    assert compose["services"].keys() == {*nodes, "toxiproxy", "prometheus"}


def test_every_directed_link_between_nodes_has_a_proxy_of_its_own(compose: dict[str, Any]) -> None:
    nodes, listed = configs(compose), proxies(compose)
    for name, config in nodes.items():
        assert compose["services"][name]["hostname"] == name
        host, port = parse_address(config.node.peer_address)
        assert (host, parse_listen_address(config.node.peer_listen)) == (name, ("0.0.0.0", port))
        for peer, address in config.dial_addresses().items():
            proxy = listed[f"{name}-to-raftkv-{peer}"]
            host, port = parse_address(address)
            assert (host, proxy["listen"]) == ("toxiproxy", f"0.0.0.0:{port}")
            assert proxy["upstream"] == nodes[f"raftkv-{peer}"].node.peer_address
    links = {f"{a}-to-{b}" for a in nodes for b in nodes if a != b}
    assert listed.keys() == links | {f"client-to-{name}" for name in nodes}
    assert len({proxy["listen"] for proxy in listed.values()}) == len(listed)
    assert all(proxy["enabled"] for proxy in listed.values())


def test_clients_on_the_host_reach_each_node_through_its_proxy(compose: dict[str, Any]) -> None:
    published = compose["services"]["toxiproxy"]["ports"]
    for name, config in configs(compose).items():
        proxy = proxies(compose)[f"client-to-{name}"]
        host, port = parse_address(config.node.address)
        assert f"{host}:{port}:{parse_listen_address(proxy['listen'])[1]}" in published
        assert proxy["upstream"] == f"{name}:{parse_listen_address(config.node.listen)[1]}"
        # Past the proxy there is no way from the host, or cutting it would cut nothing.
        inside = [entry.rpartition(":")[2] for entry in compose["services"][name]["ports"]]
        assert inside == [str(parse_listen_address(config.node.metrics or "")[1])]
    assert "127.0.0.1:8474:8474" in published


def test_what_is_published_is_published_to_the_host_alone(compose: dict[str, Any]) -> None:
    published = [entry for service in compose["services"].values() for entry in service["ports"]]
    assert all(entry.startswith("127.0.0.1:") for entry in published)
    assert len({entry.rpartition(":")[0] for entry in published}) == len(published)


def test_prometheus_scrapes_every_node_and_has_rules_on_metrics_that_exist(compose: dict[str, Any]) -> None:
    service = compose["services"]["prometheus"]
    config = yaml.safe_load(mounted(service, "/etc/prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    targets = [target for group in job["static_configs"] for target in group["targets"]]
    expected = [f"{name}:{parse_listen_address(one.node.metrics or '')[1]}" for name, one in configs(compose).items()]
    assert targets == expected
    (rules,) = config["rule_files"]
    groups = yaml.safe_load(mounted(service, rules).read_text())["groups"]
    alerts = [rule for group in groups for rule in group["rules"]]
    assert len({rule["alert"] for rule in alerts}) == len(alerts)
    shown = {one.name for family in registry(Node(), Counters()).collect() for one in family.samples}
    for rule in alerts:
        used = set(re.findall(r"\b(?:raftkv|process)_\w+", rule["expr"]))
        assert used <= shown, rule["alert"]
        assert used or rule["expr"].startswith("up{")
        assert f'job="{job["job_name"]}"' in rule["expr"] or "job" not in rule["expr"]
        assert rule["annotations"]["summary"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool")
def test_prometheus_takes_its_files(compose: dict[str, Any], tmp_path: Path) -> None:
    service = compose["services"]["prometheus"]
    config = mounted(service, "/etc/prometheus/prometheus.yml").read_text()
    rules = mounted(service, "/etc/prometheus/alerts.yml")
    (tmp_path / "prometheus.yml").write_text(config.replace("/etc/prometheus/alerts.yml", str(rules)))
    checked = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "SUCCESS" in checked.stdout


def test_one_command_waits_for_everything(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name in configs(compose):
        assert services[name]["depends_on"] == {"toxiproxy": {"condition": "service_healthy"}}
        command = services[name]["healthcheck"]["test"]
        assert command == ["CMD", "raftkv", "health", "--ready", "--config", "/etc/raftkv/node.toml"]
    # Toxiproxy's image has no shell.
    assert all(service["healthcheck"]["test"][0] == "CMD" for service in services.values())
    for service in services.values():
        name, _, tag = service["image"].partition(":")
        assert name
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)


def test_every_node_keeps_its_data_in_a_volume_of_its_own(compose: dict[str, Any]) -> None:
    volumes = []
    for name, config in configs(compose).items():
        for mount in compose["services"][name]["volumes"]:
            source, inside = mount.split(":")[:2]
            if inside == config.node.data_dir:
                volumes.append(source)
    assert len(set(volumes)) == 3
    assert {*volumes, "prometheus"} == set(compose["volumes"])


def test_a_node_gets_time_to_end_in_order(compose: dict[str, Any]) -> None:
    from raftkv.local.node import STOP_TIMEOUT

    for service in (compose["services"][name] for name in configs(compose)):
        assert int(service["stop_grace_period"].removesuffix("s")) > STOP_TIMEOUT


def test_what_the_image_is_made_of_is_there(dockerfile: list[tuple[str, str]]) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [shlex.split(rest)[:-1] for verb, rest in dockerfile if verb == "COPY" and not rest.startswith("--from")]
    names = {name for group in copied for name in group}
    assert names == allowed
    assert all((ROOT / name).exists() for name in names)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= names
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= names


def test_the_image_runs_the_command_as_an_ordinary_user(dockerfile: list[tuple[str, str]]) -> None:
    verbs = dict(dockerfile)
    assert verbs["USER"] == "raftkv"
    assert re.search(r"useradd .* raftkv$", verbs["RUN"].split("&&")[0].strip())
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert verbs["ENTRYPOINT"] == f'["{next(iter(scripts))}"]'
    assert verbs["CMD"] == '["serve", "--config", "/etc/raftkv/node.toml"]'
    assert '["raftkv", "health", "--config", "/etc/raftkv/node.toml"]' in verbs["HEALTHCHECK"]
    assert verbs["STOPSIGNAL"] == "SIGTERM"
    assert verbs["VOLUME"] in verbs["RUN"]


def test_the_image_tells_its_ports(compose: dict[str, Any], dockerfile: list[tuple[str, str]]) -> None:
    config = configs(compose)["raftkv-1"].node
    used = [parse_listen_address(address)[1] for address in (config.listen, config.peer_listen, config.metrics or "")]
    assert dict(dockerfile)["EXPOSE"].split() == [str(port) for port in used]
