"""The manifests for Kubernetes agree with each other, with the image, and with what a node takes and serves."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import raftkv
from raftkv.addresses import parse_address, parse_listen_address
from raftkv.clock import SystemClock
from raftkv.frontend.counters import Counters
from raftkv.frontend.http.monitor import Monitor
from raftkv.local.node import STOP_TIMEOUT
from raftkv.node import variables
from raftkv.node.config import NodeConfig, load_config
from tests.documents import Command, mistake
from tests.rpc_fakes import MonitoredFake

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "kubernetes"
LABELS = {"app.kubernetes.io/name": "raftkv"}

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def kustomization() -> Manifest:
    loaded: Manifest = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def manifests(kustomization: Manifest) -> dict[tuple[str, str], Manifest]:
    """By kind and name."""
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(kustomization["resources"])
    loaded = [one for name in sorted(files) for one in yaml.safe_load_all((FOLDER / name).read_text())]
    found = {(one["kind"], one["metadata"]["name"]): one for one in loaded}
    assert len(found) == len(loaded)
    return found


@pytest.fixture(scope="module")
def pods(manifests: dict[tuple[str, str], Manifest]) -> Manifest:
    spec: Manifest = manifests["StatefulSet", "raftkv"]["spec"]
    return spec


@pytest.fixture(scope="module")
def container(pods: Manifest) -> Manifest:
    (only,) = pods["template"]["spec"]["containers"]
    found: Manifest = only
    return found


def environment(container: Manifest, ordinal: int) -> dict[str, str]:
    """The variables of the pod with that number, as the kubelet makes them."""
    found: dict[str, str] = {}
    for one in container["env"]:
        if "value" in one:
            found[one["name"]] = re.sub(r"\$\((\w+)\)", lambda name: found[name[1]], one["value"])
        else:
            assert one["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}}
            found[one["name"]] = str(ordinal)
    return found


@pytest.fixture(scope="module")
def configs(pods: Manifest, container: Manifest) -> dict[str, NodeConfig]:
    """Pod -> the configuration of its node."""
    found = {}
    for ordinal in range(pods["ordinals"]["start"], pods["ordinals"]["start"] + pods["replicas"]):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment(container, ordinal).items():
                patch.setenv(name, value)
            found[f"raftkv-{ordinal}"] = load_config(FOLDER / "node.toml")
    return found


def test_every_pod_is_the_node_of_its_number_at_its_own_name(
    configs: dict[str, NodeConfig], pods: Manifest, container: Manifest, kustomization: Manifest
) -> None:
    domain = f"{pods['serviceName']}.{kustomization['namespace']}.svc.cluster.local"
    assert sorted(configs) == ["raftkv-1", "raftkv-2", "raftkv-3"]
    for pod, config in configs.items():
        assert pod == f"raftkv-{config.node.id}"
        assert {parse_address(config.node.address).host, parse_address(config.node.peer_address).host} == {
            f"{pod}.{domain}"
        }
        assert [peer.id for peer in config.nodes] == [1, 2, 3]
        assert variables.unknown(NodeConfig, environment(container, config.node.id)) == []
    assert len({config.cluster for config in configs.values()}) == 1


def test_ports_are_those_at_which_nodes_listen(
    configs: dict[str, NodeConfig], container: Manifest, manifests: dict[tuple[str, str], Manifest]
) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for config in configs.values():
        places = {"client": config.node.listen, "peer": config.node.peer_listen, "metrics": config.node.metrics or ""}
        assert {name: parse_listen_address(at).port for name, at in places.items()} == ports
        assert parse_address(config.node.address).port == ports["client"]
        assert parse_address(config.node.peer_address).port == ports["peer"]
    for name in ("raftkv", "raftkv-nodes"):
        service = manifests["Service", name]["spec"]
        assert service["selector"] == LABELS
        for port in service["ports"]:
            assert port["port"] == ports[port["targetPort"]]


def test_nodes_find_each_other_before_they_are_ready(
    pods: Manifest, manifests: dict[tuple[str, str], Manifest]
) -> None:
    service = manifests["Service", pods["serviceName"]]["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    assert pods["podManagementPolicy"] == "Parallel"


def test_the_command_and_the_image_are_those_of_the_product(container: Manifest, kustomization: Manifest) -> None:
    assert mistake(Command("pod", " ".join(["raftkv", *container["args"]]), True)) is None
    assert kustomization["images"] == [{"name": container["image"], "newTag": raftkv.__version__}]
    assert f"raftkv:{raftkv.__version__}" in (FOLDER / "kustomization.yaml").read_text()
    user = re.search(r"--uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert user is not None


def test_probes_ask_for_what_a_node_serves(container: Manifest) -> None:
    monitor = Monitor(MonitoredFake(), Counters(), "127.0.0.1", 0, SystemClock())
    served = {route.resource.canonical for route in monitor._runner.app.router.routes() if route.resource}
    for name, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        asked = container[name]["httpGet"]
        assert asked == {"path": path, "port": "metrics", "scheme": "HTTPS"}
        assert path in served


def test_the_image_runs_without_rights(pods: Manifest, container: Manifest) -> None:
    pod = pods["template"]["spec"]["securityContext"]
    user = re.search(r"--uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert user is not None
    assert pod["runAsNonRoot"] is True
    assert {pod["runAsUser"], pod["runAsGroup"], pod["fsGroup"]} == {int(user[1])}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_every_path_of_the_configuration_is_mounted(
    configs: dict[str, NodeConfig], pods: Manifest, container: Manifest, kustomization: Manifest
) -> None:
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"] for volume in pods["template"]["spec"]["volumes"]}
    claims = {claim["metadata"]["name"] for claim in pods["volumeClaimTemplates"]}
    assert mounts.keys() == volumes | claims
    assert claims == {"data"}
    text = (FOLDER / "kustomization.yaml").read_text()
    for pod, config in configs.items():
        assert config.node.data_dir.startswith(f"{mounts['data']['mountPath']}/")
        security = config.security
        for path in (security.ca_file, security.cert_file, security.key_file):
            folder, _, name = str(path).rpartition("/")
            assert folder == mounts["tls"]["mountPath"]
            assert f"--from-file=certs/{name}" in text, "it is in the secret"
        assert str(security.key_file).endswith(f"/node-{pod[-1]}.key")
        assert security.client_certs
    assert "subPath" not in mounts["tls"], "replaced certificates would not arrive"
    assert mounts["config"]["mountPath"] == container["args"][-1]
    (generated,) = kustomization["configMapGenerator"]
    assert generated["files"] == [mounts["config"]["subPath"]]
    names = {list(volume.values())[1].get("name") for volume in pods["template"]["spec"]["volumes"]}
    assert generated["name"] in names


def test_the_commands_that_are_shown_would_be_taken(configs: dict[str, NodeConfig]) -> None:
    """And make certificates that name the nodes as clients reach them."""
    text = (FOLDER / "kustomization.yaml").read_text().replace(" \\\n#", "")
    lines = re.findall(r"raftkv-admin cert [^;#\n]+", text)
    assert len(lines) == 2
    for line in lines:
        assert mistake(Command("comment", line.strip().replace("$n", "1"), True)) is None
    for config in configs.values():
        made = lines[1].replace("$n", str(config.node.id))
        assert f"--cluster {config.cluster.id}" in made
        assert f"--host {parse_address(config.node.address).host}" in made


def test_a_node_ends_in_order_and_one_at_a_time(pods: Manifest, manifests: dict[tuple[str, str], Manifest]) -> None:
    spec = pods["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > STOP_TIMEOUT
    assert spec["enableServiceLinks"] is False
    budget = manifests["PodDisruptionBudget", "raftkv"]["spec"]
    assert budget == {"maxUnavailable": 1, "selector": {"matchLabels": LABELS}}
    assert pods["selector"]["matchLabels"] == LABELS == pods["template"]["metadata"]["labels"]
    (term,) = spec["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term == {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": LABELS}}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")
def test_kustomize_puts_them_together() -> None:
    done = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert {one["metadata"]["namespace"] for one in built} == {"raftkv"}
    (stateful,) = [one for one in built if one["kind"] == "StatefulSet"]
    (config,) = [one for one in built if one["kind"] == "ConfigMap"]
    assert config["metadata"]["name"].startswith("raftkv-config-")
    assert config["metadata"]["name"] in {
        volume.get("configMap", {}).get("name") for volume in stateful["spec"]["template"]["spec"]["volumes"]
    }
    assert stateful["spec"]["template"]["spec"]["containers"][0]["image"] == f"raftkv:{raftkv.__version__}"
