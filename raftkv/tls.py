"""Certificates of nodes and clients: their files, what names them, and TLS made of them.

A node's certificate names it by the DNS name ``node-3.<cluster id>``. That is what other nodes look for; for clients it
also names the hosts at which the node is reached.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from raftkv.errors import ConfigError
from raftkv.log_limit import limited

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
        """For one side of a connection of which both have a certificate. Checks CAs, dates and purposes, no names.

        Raises ConfigError.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(self.ca)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{self.ca}: no certificates of CAs: {_reason(error)}") from None
        try:
            # A password that is asked for would stop the node at its start.
            context.load_cert_chain(self.cert, self.key, password=_no_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            text = f"{self.cert} and {self.key}: no certificate and its key: {_reason(error)}"
            raise ConfigError(text) from None
        return context


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


class _Told(ssl.SSLObject):
    """The server's side of a connection: says in the log why a handshake failed. The loops do not."""

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLError as error:
            log.warning("refused a TLS connection: %s", _reason(error), extra=limited("TLS"))
            raise


def listening(latest: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """A context for a listener, whose every new connection has the context that is ``latest`` then."""
    # The listener keeps one context for good; OpenSSL lets a connection change it once its first bytes have come.
    stable = latest()

    def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = latest()

    first = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    first.check_hostname = False
    first.verify_mode = stable.verify_mode
    first.minimum_version = stable.minimum_version
    first.num_tickets = 0
    first.sslobject_class = _Told
    first.sni_callback = renew
    return first
