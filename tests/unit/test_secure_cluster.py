"""Guarantee: a local cluster is secure from the first start on or never, and says how to speak to it."""

from __future__ import annotations

import re
import shlex
import stat
from pathlib import Path

import pytest

from raftkv.cli.common import Exit
from raftkv.cli.contexts import VARIABLE, load
from raftkv.cli.main import run
from raftkv.local.certificates import Authority
from raftkv.local.cluster import LocalProcesses
from raftkv.local.node import LocalError
from raftkv.local.ports import free_ports
from raftkv.local.shape import Place, new_shape
from raftkv.node.config import load_config
from raftkv.node.credentials import certificates


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalProcesses, "start_missing", lambda _: [])
    monkeypatch.setattr(LocalProcesses, "wait_ready", lambda *_: None)
    monkeypatch.setattr(LocalProcesses, "bootstrap", lambda self: self.token_file.write_text("rkv-first\n"))
    monkeypatch.setattr("raftkv.local.status.probe", lambda _, **__: None)


@pytest.mark.usefixtures("nothing_runs")
def test_what_up_prints_names_the_cluster_for_all_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "contexts.json"))
    where, (port,) = tmp_path / "my data", free_ports(1)
    words = ["up", "--nodes", "1", "--port", str(port), "--data-dir", str(where)]
    assert run([*words, "--secure"]) == Exit.DONE
    shown = capsys.readouterr().out
    (put,) = re.findall(r"try +(.*)", shown)
    assert shlex.split(put)[1:] == ["put", "hello", "world", "--context", "local"]
    assert "rkv-first" not in shown
    one = load().get("local")
    assert (one.endpoints, one.ca, one.key) == (f"127.0.0.1:{port}", f"{where}/tls/ca.pem", f"{where}/tls/client.key")
    assert one.tls() is not None
    assert one.token == "rkv-first"
    assert run(words) == Exit.DONE, "the folder remembers"
    assert "--context local" in capsys.readouterr().out
    assert run(["context", "show", "local"]) == run(["context", "list", "-o", "json"]) == 0
    assert "rkv-first" not in capsys.readouterr().out


@pytest.mark.usefixtures("nothing_runs")
def test_the_context_of_another_cluster_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "contexts.json"))
    assert run(["context", "add", "local", "h:1", "--token", "rkv-mine"]) == 0
    (port,) = free_ports(1)
    for _ in range(2):
        words = ["up", "--nodes", "1", "--port", str(port), "--data-dir", str(tmp_path / "data"), "--secure"]
        assert run(words) == Exit.DONE
    known = load()
    assert (sorted(known.named), known.current) == (["local", "local-2"], "local")
    assert known.get("local").token == "rkv-mine"


@pytest.mark.usefixtures("nothing_runs")
def test_a_cluster_without_tls_gets_none_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where, (port,) = tmp_path / "data", free_ports(1)
    words = ["up", "--nodes", "1", "--port", str(port), "--data-dir", str(where)]
    assert run(words) == Exit.DONE
    assert stat.S_IMODE((where / "peer.secret").stat().st_mode) == 0o600
    assert run([*words, "--secure"]) == Exit.ERROR
    assert "made without --secure" in capsys.readouterr().err


def test_one_that_was_interrupted_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    shape = new_shape([Place(1, "127.0.0.1:7401", "127.0.0.1:7501")], 1, 1)
    Authority.create(tmp_path / "tls").client("client")
    with pytest.raises(LocalError, match="was to be secure"):
        LocalProcesses.create(tmp_path, shape)
    cluster = LocalProcesses.create(tmp_path, shape, secure=True)
    (node,) = cluster.nodes
    assert certificates(load_config(node.config)) is not None
    assert cluster.tls is not None
    assert cluster.tls.read().key is not None
