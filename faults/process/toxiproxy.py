"""Toxiproxy's server as a child process, and its proxies. All calls block; the only place that knows toxiproxy-python.

The library keeps the server's address at class level and takes an error for the proxy that was asked for. So each
request here sets the address first, and looks at what the server answers.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import requests
from toxiproxy.api import APIConsumer
from toxiproxy.exceptions import InvalidToxic, NotFound, ProxyExists

from raftkv.clock import SystemClock
from raftkv.errors import RaftKVError
from raftkv.local.ports import free_ports
from raftkv.local.process import pause

_HOST: Final = "127.0.0.1"
_BUILT: Final = Path(__file__).resolve().parents[2] / ".cache" / "toxiproxy" / "server"
_START_TIMEOUT: Final = 60.0
_STOP_TIMEOUT: Final = 5.0
_POLL: Final = 0.02
_LOCK: Final = threading.Lock()
"""The library has one address for all its calls."""

STREAMS: Final = ("upstream", "downstream")
"""From the one who dialled, and back to him."""


class ToxiproxyError(RaftKVError):
    """Toxiproxy is missing, does not answer, or refuses."""


class _NotThereError(ToxiproxyError):
    """The server knows no such proxy or toxic."""


def find_server() -> str | None:
    """An installed ``toxiproxy-server``, or the one that ``make toxiproxy`` built; None if there is neither."""
    return shutil.which("toxiproxy-server") or (str(_BUILT) if os.access(_BUILT, os.X_OK) else None)


class Link:
    """One proxy: whoever dials ``listen`` reaches ``upstream``."""

    def __init__(self, server: Toxiproxy, name: str, listen: str, upstream: str) -> None:
        self.name = name
        self.listen = listen
        self.upstream = upstream
        self._server = server

    def add(self, kind: str, stream: str, **attributes: int) -> str:
        """Lay a toxic on one direction; its name. Raises ToxiproxyError if the server does not take it."""
        toxic = {"name": f"{kind}_{stream}", "type": kind, "stream": stream, "attributes": attributes}
        return str(self._server.post(f"/proxies/{self.name}/toxics", toxic)["name"])

    def remove(self, name: str) -> None:
        """Take a toxic away; nothing happens if it is gone."""
        with suppress(_NotThereError):
            self._server.delete(f"/proxies/{self.name}/toxics/{name}")

    def toxics(self) -> list[str]:
        """Names of the toxics that lie on it."""
        return self._server.toxics()[self.name]


class Toxiproxy:
    """Starts the server at ``binary`` on a free loopback port; ``with`` ends it. ``log``: its output."""

    def __init__(self, binary: str, log: Path) -> None:
        (self._port,) = free_ports(1)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [binary, "-host", _HOST, "-port", str(self._port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "LOG_LEVEL": "warn"},
                start_new_session=True,
            )
        try:
            self._wait(log)
        except BaseException:
            self.close()
            raise

    def _wait(self, log: Path) -> None:
        clock = SystemClock()
        end = clock.now() + _START_TIMEOUT
        while not self.version():
            if self._process.poll() is not None or clock.now() >= end:
                raise ToxiproxyError(f"Toxiproxy does not answer: {log.read_text(errors='replace')[-500:]}")
            pause(_POLL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def version(self) -> str:
        """The server's version, nothing if it does not answer yet."""
        try:
            return str(self._get("/version")["version"])
        except ToxiproxyError:
            return ""

    def link(self, name: str, upstream: str) -> Link:
        """A new proxy, at a port that the server finds. Raises ToxiproxyError."""
        made = self.post("/proxies", {"name": name, "listen": f"{_HOST}:0", "upstream": upstream})
        return Link(self, name, made["listen"], upstream)

    def toxics(self) -> dict[str, list[str]]:
        """The names of the toxics on each proxy."""
        proxies = self._get("/proxies")
        return {name: sorted(toxic["name"] for toxic in proxy["toxics"]) for name, proxy in proxies.items()}

    def heal(self) -> None:
        """Take every toxic away."""
        self.post("/reset", {})
        if left := {name: toxics for name, toxics in self.toxics().items() if toxics}:
            raise ToxiproxyError(f"toxics are left after healing: {left}")

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Make something; what the server made of it. Raises ToxiproxyError."""
        return self._ask(lambda: APIConsumer.post(path, json=body))

    def delete(self, path: str) -> None:
        """Raises ToxiproxyError."""
        self._ask(lambda: APIConsumer.delete(path))

    def _get(self, path: str) -> Any:
        return self._ask(lambda: APIConsumer.get(path))

    def _ask(self, request: Callable[[], requests.Response]) -> Any:
        try:
            with _LOCK:
                APIConsumer.host, APIConsumer.port = _HOST, self._port
                answer = request()
            if not answer.ok:
                raise ToxiproxyError(_refusal(answer.content))
            return json.loads(answer.content or b"null")
        except NotFound as problem:
            raise _NotThereError(_refusal(*problem.args)) from None
        except (ProxyExists, InvalidToxic) as problem:
            raise ToxiproxyError(_refusal(*problem.args)) from None
        except (requests.RequestException, ValueError) as problem:
            raise ToxiproxyError(f"Toxiproxy does not answer: {problem}") from None

    def close(self) -> None:
        """End the server; its connections break."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(_STOP_TIMEOUT)


def _refusal(content: bytes) -> str:
    """What the server says with an error, by itself a JSON object."""
    text = content.decode(errors="replace").strip()
    with suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["error"]
    return f"Toxiproxy refuses: {text}"
