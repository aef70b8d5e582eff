"""How a client knows that it speaks to nodes of its cluster, and they who it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from raftkv.errors import ConfigError
from raftkv.tls import context

if TYPE_CHECKING:
    import grpc


@dataclass(frozen=True, slots=True)
class TLS:
    """Paths of PEM files, which are read when a client is made: other ones are for a new client.

    ``ca``: the CAs that vouch for the cluster's nodes. ``cert``, ``key``: the client's certificate and its key, where
    nodes ask for one. ``server_name``: what nodes' certificates name, if that is not the host at which they are
    reached, for instance behind a proxy.
    """

    ca: str | Path
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("a client's certificate needs its key, and a key its certificate")

    def read(self) -> Credentials:
        """What the files hold now. Raises ConfigError that names one which is not what it should be."""
        cert, key = (None if path is None else _read(path) for path in (self.cert, self.key))
        found = Credentials(_read(self.ca), cert, key, self.server_name)
        # gRPC would only say that no node can be reached.
        context(self.ca, self.cert, self.key, server=False)
        return found


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client's files hold: PEM, and the name that nodes' certificates must have, if not that of the host."""

    ca: bytes = field(repr=False)
    cert: bytes | None = field(repr=False)
    key: bytes | None = field(repr=False)
    server_name: str | None

    def of_channel(self) -> grpc.ChannelCredentials:
        """As gRPC wants them. Only in a process in which gRPC may be used."""
        import grpc

        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)

    def options(self) -> tuple[tuple[str, str], ...]:
        """Those of gRPC's channels."""
        return () if self.server_name is None else (("grpc.ssl_target_name_override", self.server_name),)


def _read(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror or error}") from None
