"""Certificates of nodes and clients: their files, what names them, and TLS made of them.

A node's certificate names it by the DNS name ``node-3.<cluster id>``. That is what other nodes look for; for clients it
also names the hosts at which the node is reached.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from raftkv.addresses import Address, crowded
from raftkv.errors import ConfigError
from raftkv.log_limit import limited

if TYPE_CHECKING:
    import socket

log: Final = logging.getLogger(__name__)

_STEPS: Final = 10
"""Of a handshake in memory; it takes three."""


def node_name(cluster_id: str, node: int) -> str:
    """The name of a node in its certificate."""
    return f"node-{node}.{cluster_id}"


def names_of(certificate: Mapping[str, Any] | None) -> frozenset[str]:
    """The DNS names in what :meth:`ssl.SSLSocket.getpeercert` says."""
    entries: tuple[tuple[str, str], ...] = (certificate or {}).get("subjectAltName", ())
    return frozenset(value for kind, value in entries if kind == "DNS")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files: the CAs that are trusted, a certificate with its chain, and its private key."""

    ca: str
    cert: str
    key: str

    def read(self) -> tuple[bytes, bytes, bytes]:
        """CAs, certificate and key. Raises ConfigError that names the file."""
        found = []
        for path in (self.ca, self.cert, self.key):
            try:
                found.append(Path(path).read_bytes())
            except OSError as error:
                raise ConfigError(f"{path}: cannot read it: {error.strerror or error}") from None
        ca, cert, key = found
        return ca, cert, key

    def stamps(self) -> tuple[object, ...]:
        """What is different once a file was replaced or written."""
        return tuple(_stamp(path) for path in (self.ca, self.cert, self.key))

    def context(self, *, server: bool) -> ssl.SSLContext:
        """For one side of a connection between nodes: both have a certificate. Raises ConfigError."""
        return context(self.ca, self.cert, self.key, server=server)


def context(
    ca: str | Path, cert: str | Path | None = None, key: str | Path | None = None, *, server: bool
) -> ssl.SSLContext:
    """For one side of a connection of TLS 1.3. Checks CAs, dates and purposes of the other's certificate, no names.

    Raises ConfigError.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    # No session is resumed: each connection has proven anew, by certificates that are good now.
    made.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    if server:
        made.num_tickets = 0
    try:
        made.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{ca}: no certificates of CAs: {_reason(error)}") from None
    if cert is None:
        return made
    try:
        # A password that is asked for would stop the node at its start.
        made.load_cert_chain(cert, key, password=_no_password)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(f"{cert} and {key}: no certificate and its key: {_reason(error)}") from None
    return made


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _stamp(path: str) -> object:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    return getattr(error, "strerror", None) or str(error)


def certificate_of(files: TlsFiles) -> dict[str, Any]:
    """What the certificate in ``files`` says, once the CAs there have proven that it is good for both sides.

    Raises ConfigError.
    """
    near, far = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = files.context(server=True).wrap_bio(near, far, server_side=True)
    client = files.context(server=False).wrap_bio(far, near)
    try:
        for _ in range(_STEPS):
            if _step(client) and _step(server):
                return dict(client.getpeercert() or {})
            _step(server)
    except ssl.SSLError as error:
        raise ConfigError(f"{files.cert} is not trusted with the CAs in {files.ca}: {_reason(error)}") from None
    raise ConfigError(f"{files.cert}: no TLS connection can be made with it")


def _step(side: ssl.SSLObject) -> bool:
    """Whether its part of the handshake is over."""
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


class Arrivals:
    """The protocol factory of a plain listener: lets each connection shake hands, and hands it over to ``factory``.

    ``latest``: the context of the next one. Each has ``patience`` seconds, and ``most`` do it at a time: another one
    ends the oldest of the host that has most, so that strangers hold little of a node, and do not keep others out.
    """

    def __init__(
        self,
        latest: Callable[[], ssl.SSLContext],
        factory: Callable[[], asyncio.BaseProtocol],
        *,
        most: int,
        patience: float,
    ) -> None:
        self._latest = latest
        self._factory = factory
        self._most = most
        self._patience = patience
        self._open: dict[asyncio.Task[None], str] = {}

    def __call__(self) -> asyncio.BaseProtocol:
        return _Arrival(self)

    def close(self) -> None:
        """End all that have not shaken hands yet."""
        for task in self._open:
            task.cancel()

    def arrived(self, connection: socket.socket, name: object) -> None:
        """Somebody has connected, from what ``socket.getpeername`` says."""
        address = str(Address(*name[:2])) if isinstance(name, tuple) and len(name) >= 2 else str(name)
        host = address.rpartition(":")[0] or address
        if len(self._open) >= self._most:
            oldest = crowded(self._open)
            host_of_oldest = self._open.pop(oldest)
            oldest.cancel()
            log.warning(
                "refused a TLS connection from %s: too many without a handshake",
                host_of_oldest,
                extra=limited(host_of_oldest),
            )
        task = asyncio.get_running_loop().create_task(self._shake_hands(connection, address, host))
        self._open[task] = host

        def ended(task: asyncio.Task[None]) -> None:
            self._open.pop(task, None)
            if task.cancelled():  # perhaps before it began, so that nobody else closes it
                connection.close()

        task.add_done_callback(ended)

    async def _shake_hands(self, connection: socket.socket, address: str, host: str) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(
                self._factory, connection, ssl=self._latest(), ssl_handshake_timeout=self._patience
            )
        except (ssl.SSLError, ConnectionAbortedError) as error:
            problem = _reason(error) if isinstance(error, ssl.SSLError) else f"no handshake within {self._patience} s"
            log.warning("refused a TLS connection from %s: %s", address, problem, extra=limited(host))
        except OSError:
            pass  # It has hung up.


class _Arrival(asyncio.Protocol):
    """Gives the socket of a plain connection away before anything is read from it."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        name = transport.get_extra_info("peername")
        try:
            self._arrivals.arrived(transport.get_extra_info("socket").dup(), name)
        except OSError as error:
            log.warning("cannot take a connection: %s", error, extra=limited("TLS"))
        finally:
            # Not an isinstance check: the transports of uvloop only look like asyncio's.
            cast(asyncio.Transport, transport).abort()
