"""The unit for systemd fits the command, the configuration beside it and what systemd itself says of both."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from raftkv.local.node import STOP_TIMEOUT
from raftkv.node.config import NodeConfig, load_config
from tests.documents import Command, mistake

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "systemd"
UNIT = FOLDER / "raftkv.service"


@pytest.fixture(scope="module")
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters="=", comment_prefixes="#")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return parser


@pytest.fixture(scope="module")
def configs() -> dict[int, NodeConfig]:
    """Of each node, as its own RAFTKV_NODE_ID makes it."""
    found = {}
    for node in (1, 2, 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAFTKV_NODE_ID", str(node))
            found[node] = load_config(FOLDER / "node.toml")
    return found


def test_it_starts_a_node_that_says_when_it_is_ready(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    program, *arguments = service["ExecStart"].split()
    assert Path(program).name == "raftkv"
    assert mistake(Command("unit", " ".join(["raftkv", *arguments]), True)) is None
    assert arguments == ["serve", "--config", "/etc/raftkv/node.toml"]
    assert service["Type"] == "notify"
    assert "-HUP $MAINPID" in service["ExecReload"]
    assert float(service["TimeoutStopSec"]) > STOP_TIMEOUT
    assert service["Restart"] == "on-failure"
    assert int(service["LimitNOFILE"]) >= 4096 + 1024


def test_the_node_may_write_to_its_data_and_nowhere_else(
    unit: configparser.ConfigParser, configs: dict[int, NodeConfig]
) -> None:
    service = unit["Service"]
    assert service["ProtectSystem"] == "strict"
    assert "ReadWritePaths" not in service
    assert {config.node.data_dir for config in configs.values()} == {f"/var/lib/{service['StateDirectory']}"}
    assert service["StateDirectoryMode"] == "0700"
    assert service["User"] in (FOLDER / "raftkv.sysusers").read_text().split()
    assert service["CapabilityBoundingSet"] == ""


def test_the_configuration_is_that_of_a_cluster_with_tls(configs: dict[int, NodeConfig]) -> None:
    for node, config in configs.items():
        assert config.node.id == node
        assert config.security.tls
        assert config.security.client_certs
        assert config.security.key_file is not None
        assert config.security.key_file.startswith("/etc/raftkv/")
        assert (config.node.listen, config.node.address) == ("0.0.0.0:7401", f"kv-{node}.example:7401")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_takes_it_and_finds_it_closed(tmp_path: Path) -> None:
    copy = tmp_path / "raftkv.service"
    copy.write_text(UNIT.read_text().replace("/opt/raftkv/bin/raftkv", sys.executable))

    def analyze(*arguments: str) -> str:
        done = subprocess.run(
            ["systemd-analyze", *arguments, str(copy)], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert analyze("verify") == ""
    # From 0, safe, to 100; raftkv.service was 14 when it was written.
    analyze("security", "--offline=true", "--threshold=20")
