"""Toxiproxy's server as a child process, and its proxies. All calls block; the only place that knows toxiproxy-python.

The library keeps the server's address at class level, answers None from ``add_toxic`` and takes any answer for a yes;
so each call here sets the address first, and looks at what the server has made of a toxic.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import requests
from toxiproxy import Toxiproxy as Api
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
_LOCK: Final = threading.RLock()
"""The library has one address for all its calls."""

STREAMS: Final = ("upstream", "downstream")
"""From the one who dialled, and back to him."""


class ToxiproxyError(RaftKVError):
    """Toxiproxy is missing, does not answer, or refuses."""


def find_server() -> str | None:
    """An installed ``toxiproxy-server``, or the one that ``make toxiproxy`` built; None if there is neither."""
    return shutil.which("toxiproxy-server") or (str(_BUILT) if os.access(_BUILT, os.X_OK) else None)


class Link:
    """One proxy: whoever dials ``listen`` reaches ``upstream``."""

    def __init__(self, server: Toxiproxy, proxy: Any) -> None:
        self.name: str = proxy.name
        self.listen: str = proxy.listen
        self.upstream: str = proxy.upstream
        self._server = server
        self._proxy = proxy

    def add(self, kind: str, stream: str, **attributes: int) -> str:
        """Lay a toxic on one direction; its name. Raises ToxiproxyError if the server does not take it."""
        name = f"{kind}_{stream}"
        with self._server.calls():
            self._proxy.add_toxic(name=name, type=kind, stream=stream, attributes=attributes)
            if self._proxy.get_toxic(name) is None:
                raise ToxiproxyError(f"proxy {self.name} has no toxic {name} after it was added")
        return name

    def remove(self, name: str) -> None:
        """Take a toxic away; nothing happens if it is gone."""
        with self._server.calls():
            try:
                self._proxy.destroy_toxic(name)
            except NotFound:
                return

    def toxics(self) -> list[str]:
        """Names of the toxics that lie on it."""
        with self._server.calls():
            return sorted(self._proxy.toxics())


class Toxiproxy:
    """Starts the server at ``binary`` on a free loopback port; ``with`` ends it. ``log``: its output."""

    def __init__(self, binary: str, log: Path) -> None:
        (self._port,) = free_ports(1)
        self._api = Api()
        self._links: list[Link] = []
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

    @contextmanager
    def calls(self) -> Iterator[None]:
        """The library speaks to this server. Raises ToxiproxyError for whatever goes wrong."""
        with _LOCK:
            APIConsumer.host, APIConsumer.port = _HOST, self._port
            try:
                yield
            except (requests.RequestException, ValueError, KeyError) as problem:
                raise ToxiproxyError(f"Toxiproxy does not answer: {problem}") from None
            except (ProxyExists, InvalidToxic) as problem:
                raise ToxiproxyError(f"Toxiproxy refuses: {problem}") from None

    def version(self) -> str:
        """The server's version, nothing if it does not answer."""
        with self.calls():
            found = self._api.version()
            return "" if found is None else found.decode(errors="replace")

    def link(self, name: str, listen: str, upstream: str) -> Link:
        """A new proxy. Raises ToxiproxyError, also if the port is taken."""
        with self.calls():
            made = self._api.create(upstream=upstream, name=name, listen=listen)
        link = Link(self, made)
        self._links.append(link)
        return link

    def heal(self) -> None:
        """Take every toxic away."""
        with self.calls():
            if not self._api.reset():
                raise ToxiproxyError("Toxiproxy did not take its toxics away")
            left = {link.name: toxics for link in self._links if (toxics := link.toxics())}
        if left:
            raise ToxiproxyError(f"toxics are left after healing: {left}")

    def close(self) -> None:
        """End the server; its connections break."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(_STOP_TIMEOUT)
