"""What a node proves itself with: certificates, or a secret of its cluster; and whether it may be reached as it is
configured."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import SystemRandom
from typing import Any, Final

from raftkv.addresses import parse_listen_address
from raftkv.api.status import Problem
from raftkv.errors import ConfigError
from raftkv.node.config import NodeConfig, secret_bytes
from raftkv.peer.handshake import MIN_SECRET_BYTES, Secret
from raftkv.tls import TlsFiles, certificate_of, names_of, node_name

log = logging.getLogger(__name__)

VARIABLE: Final = "RAFTKV_SECURITY_SECRET"
FILE_VARIABLE: Final = "RAFTKV_SECURITY_SECRET_FILE"
"""Variables with the cluster's secret, and with the path of a file that has it."""

_SOON: Final = 7 * 86400.0
"""Seconds before a certificate's end, or a tenth of its time if that is less, in which it is a problem."""


class Certificates:
    """The certificate of a node, its key and the CAs that it trusts, as they were when they last fitted together.

    ``accepting``, ``dialling``: contexts of the next connection of a node, and to one; ``visited``: of the next one
    that asks for metrics or a probe, where a certificate is checked if it is shown. ``pem``: CAs, certificate and key.
    ``until``: how long the certificate is valid.

    The constructor raises ConfigError if the files do not fit together, or if the certificate does not name the node.
    """

    def __init__(self, files: TlsFiles, cluster_id: str, node: int, *, ask_clients: bool) -> None:
        self.ask_clients = ask_clients
        """Whether clients need a certificate too."""
        self._files = files
        self._name = node_name(cluster_id, node)
        self._problem = ""
        self._seen = files.stamps()
        self._load()

    def _load(self) -> None:
        files = self._files
        certificate = certificate_of(files)
        names = names_of(certificate)
        if self._name not in names:
            found = ", ".join(sorted(names)) or "no DNS name"
            raise ConfigError(f"{files.cert}: the certificate names {found}, not {self._name}, which is this node")
        accepting, dialling, visited = (files.context(server=server) for server in (True, False, True))
        visited.verify_mode = ssl.CERT_OPTIONAL
        visited.minimum_version = ssl.TLSVersion.TLSv1_2
        pem = files.read()
        if files.stamps() != self._seen:
            # What was read last need not be what was checked first. The next look is at all of it again.
            raise ConfigError(f"{files.cert}: the files changed while they were read")
        self.accepting, self.dialling, self.visited, self.pem = accepting, dialling, visited, pem
        self.until = str(certificate["notAfter"])
        self._begins, self._ends = (ssl.cert_time_to_seconds(certificate[name]) for name in ("notBefore", "notAfter"))
        warn_if_public(files.key)

    def look(self) -> None:
        """Take over what has changed. Files that do not fit together, yet, change nothing."""
        stamps = self._files.stamps()
        if stamps == self._seen:
            return
        self._seen = stamps
        try:
            self._load()
        except ConfigError as problem:
            self._problem = str(problem)
            log.warning("certificates not reloaded, keeping the old ones: %s", problem)
        else:
            self._problem = ""
            log.info("certificates reloaded; %s is valid until %s", self._name, self.until)

    def problems(self, now: float) -> Iterator[Problem]:
        """``certificate`` if it ends soon, or a new one cannot be used; ``now``: wall clock in seconds."""
        if now >= self._ends - min(_SOON, (self._ends - self._begins) / 10):
            text = f"the node's certificate {'has expired' if now >= self._ends else 'expires'}: {self.until}"
            yield Problem("certificate", f"{text}; {self._problem}" if self._problem else text)
        elif self._problem:
            yield Problem("certificate", f"the files have changed and cannot be used: {self._problem}")

    @staticmethod
    def doubt(certificate: Mapping[str, Any] | None, cluster_id: str, node: int) -> str:
        """Why ``certificate``, which a CA has vouched for, is not that of ``node``; "" if it is."""
        names = names_of(certificate)
        if node_name(cluster_id, node) in names:
            return ""
        shown = ", ".join(sorted(names)) or "nobody"
        return f"its certificate does not name node {node} of cluster {cluster_id}, but {shown}"[:400]


def certificates(config: NodeConfig) -> Certificates | None:
    """Those of the node, None if it has no TLS. Raises ConfigError."""
    security = config.security
    if security.ca_file is None or security.cert_file is None or security.key_file is None:
        return None
    files = TlsFiles(security.ca_file, security.cert_file, security.key_file)
    return Certificates(files, config.cluster.id, config.node.id, ask_clients=security.client_certs)


def peer_secret(config: NodeConfig) -> Secret:
    """The secret of the cluster of a node without TLS. Raises ConfigError that says where one is looked for."""
    security = config.security
    if security.secret is not None:
        return Secret(secret_bytes(security.secret), SystemRandom())
    path = security.secret_file
    if path is None:
        raise ConfigError(
            "security.secret_file is missing: nodes without TLS prove to each other that they know the cluster's "
            f"secret, which is in that file or in the variables {FILE_VARIABLE} or {VARIABLE}; the same on all nodes"
        )
    try:
        key = Path(path).read_bytes().strip()
        warn_if_public(path)
    except OSError as error:
        raise ConfigError(f"security.secret_file: {path}: cannot read it: {error.strerror or error}") from None
    if len(key) < MIN_SECRET_BYTES:
        raise ConfigError(
            f"security.secret_file: {path}: the secret has {len(key)} bytes, the least is {MIN_SECRET_BYTES}"
        )
    return Secret(key, SystemRandom())


def warn_if_public(path: str) -> None:
    """Say in the log that a file with a secret or a key can be read by everybody on this machine."""
    try:
        mode = Path(path).stat().st_mode
    except OSError:
        return
    if mode & 0o007:
        log.warning("%s is open to other users of this machine: `chmod o= %s`", path, path)


def check_exposure(config: NodeConfig) -> None:
    """Raises ConfigError if other machines could reach a node without TLS and nobody has said that this is meant."""
    node = config.node
    named = {"listen": node.listen, "peer_listen": node.peer_listen, "metrics": node.metrics}
    exposed = {name: at for name, at in named.items() if at is not None and not parse_listen_address(at).loopback}
    if not exposed:
        return
    if not config.security.insecure:
        name, address = next(iter(exposed.items()))
        raise ConfigError(
            f"node.{name}: {address} may be reached from other machines, and nothing is encrypted: give the node "
            "certificates (security.ca_file, cert_file, key_file), listen at a loopback address, or say that this is "
            "meant with security.insecure = true or --insecure"
        )
    log.warning("insecure: nothing is encrypted, and other machines may reach %s", ", ".join(exposed.values()))
