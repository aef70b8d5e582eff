"""The container files agree with each other, with the configuration's schema and with the repository."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from raftkv.node.config import NodeConfig, load_config, split_address

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


def configs(compose: dict[str, Any]) -> dict[str, NodeConfig]:
    """Service name -> the configuration that is mounted into it."""
    found = {}
    for name, service in compose["services"].items():
        mounts = dict(mount.split(":")[:2] for mount in service["volumes"])
        (source,) = [host for host, inside in mounts.items() if inside == "/etc/raftkv/node.toml"]
        assert service["command"] == ["serve", "--config", "/etc/raftkv/node.toml"]
        found[name] = load_config(ROOT / source)
    return found


def test_three_nodes_of_one_cluster(compose: dict[str, Any]) -> None:
    nodes = configs(compose)
    assert sorted(config.node.id for config in nodes.values()) == [1, 2, 3]
    assert len({(config.cluster, config.raft, config.nodes) for config in nodes.values()}) == 1
    assert compose["services"].keys() == {f"raftkv-{config.node.id}" for config in nodes.values()}


def test_every_address_is_reachable_from_where_it_is_used(compose: dict[str, Any]) -> None:
    for name, config in configs(compose).items():
        service = compose["services"][name]
        host, port = split_address(config.node.peer_address)
        assert (host, service["hostname"]) == (name, name)
        assert split_address(config.node.peer_listen) == ("0.0.0.0", port)
        host, port = split_address(config.node.address)
        assert split_address(config.node.listen) == ("0.0.0.0", port)
        assert service["ports"] == [f"{host}:{port}:{port}"]


def test_every_node_keeps_its_data_in_a_volume_of_its_own(compose: dict[str, Any]) -> None:
    volumes = []
    for name, config in configs(compose).items():
        for mount in compose["services"][name]["volumes"]:
            source, inside = mount.split(":")[:2]
            if inside == config.node.data_dir:
                volumes.append(source)
    assert len(volumes) == 3
    assert set(volumes) == set(compose["volumes"])


def test_a_node_gets_time_to_end_in_order(compose: dict[str, Any]) -> None:
    from raftkv.cli.local import STOP_TIMEOUT

    for service in compose["services"].values():
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
