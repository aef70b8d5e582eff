"""Guarantee: a command speaks to the cluster that was meant, and a URL says the same to a client."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import click
import pytest

from raftkv.cli import contexts
from raftkv.cli.common import DEFAULT_ENDPOINTS, Target
from raftkv.cli.contexts import Context
from raftkv.cli.main import run
from raftkv.client.tls import TLS
from raftkv.client.urls import parse_url
from raftkv.errors import ConfigError, InvalidArgument


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config" / "contexts.json"
    monkeypatch.setenv(contexts.VARIABLE, str(path))
    return path


def chosen(**given: str) -> Target:
    with click.Context(click.Command("get")):
        return Target.chosen(given)


def test_names_are_added_used_shown_and_removed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["context", "list"]) == 0
    assert run(["context", "add", "one", "h:1"]) == 0
    files = ["--tls-ca", "ca.pem", "--tls-cert", "me.pem", "--tls-key", "me.key"]
    assert run(["context", "add", "two", "h:2", *files]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert chosen().endpoints == "h:1"
    assert run(["context", "use", "two"]) == 0
    assert chosen() == Target("h:2", TLS(*(str(Path(name).absolute()) for name in ("ca.pem", "me.pem", "me.key"))))
    capsys.readouterr()
    assert run(["context", "list", "-o", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["current"], sorted(listed["contexts"])) == ("two", ["one", "two"])
    assert run(["context", "show"]) == run(["context", "show", "one"]) == run(["context", "list"]) == 0
    assert "with a certificate" in capsys.readouterr().out
    assert run(["context", "remove", "two"]) == 0
    assert chosen() == Target(DEFAULT_ENDPOINTS, None)
    assert run(["context", "use", "two"]) == 1
    assert "there is no context 'two'; there are: one" in capsys.readouterr().err


def test_who_names_endpoints_means_no_context() -> None:
    contexts.save(contexts.Contexts({"one": Context("h:1", "ca.pem", server_name="kv"), "two": Context("h:2")}, "one"))
    assert chosen() == Target("h:1", TLS("ca.pem", server_name="kv"))
    assert chosen(endpoints="h:9") == Target("h:9", None)
    assert chosen(context="two") == Target("h:2", None)
    assert chosen(context="one", endpoints="h:9", tls_ca="new.pem") == Target("h:9", TLS("new.pem", server_name="kv"))
    with pytest.raises(ConfigError, match="there is no context 'three'; there are: one, two"):
        chosen(context="three")


def test_tls_by_halves_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="TLS needs --tls-ca"):
        chosen(tls_cert="c", tls_key="k")
    with pytest.raises(ConfigError, match="a client's certificate needs its key"):
        chosen(tls_ca="ca", tls_cert="c")
    assert run(["get", "k", "--tls-ca", "none.pem", "--timeout", "1s"]) == 1
    assert "none.pem: cannot read it: No such file" in capsys.readouterr().err
    assert run(["context", "add", "one", "h:1", "--tls-key", "k"]) == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "current": "", "contexts": {"a": {"endpoint": "h:1"}}}']
)
def test_a_file_that_is_no_contexts_is_named(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"contexts.json: (damaged|written by another version)"):
        contexts.load()


def test_urls() -> None:
    assert parse_url("raftkv://a:1,b:2") == (("a:1", "b:2"), None, None)
    assert parse_url("raftkvs://[::1]:1/?ca=ca.pem") == (("[::1]:1",), TLS("ca.pem"), None)
    url = "raftkvs://a:1?ca=%2Fetc%2Fca.pem&cert=c&key=k&server_name=node-1.x"
    assert parse_url(url) == (("a:1",), TLS("/etc/ca.pem", "c", "k", "node-1.x"), None)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://a:1", "begins with raftkv:// or raftkvs://"),
        ("a:1", "begins with raftkv://"),
        ("raftkv://", "no endpoint is given"),
        ("raftkv://a", "not of the form host:port"),
        ("raftkv://to ken@a:1", "a token has ASCII letters"),
        ("raftkv://a:1/db", "no path"),
        ("raftkv://a:1?ca=x", "raftkv:// has no TLS"),
        ("raftkvs://a:1", "needs .ca=FILE"),
        ("raftkvs://a:1?ca=", "needs .ca=FILE"),
        ("raftkvs://a:1?ca=x&cb=y", "'cb'"),
        ("raftkvs://a:1?ca=x&ca=y", "once each: 'ca'"),
        ("raftkvs://a:1?ca", "not a URL"),
        ("raftkvs://[a:1", "not a URL"),
    ],
)
def test_what_is_no_url_of_a_cluster_is_refused(url: str, told: str) -> None:
    with pytest.raises(InvalidArgument, match=told):
        parse_url(url)
