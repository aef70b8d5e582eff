"""A certificate authority of one's own, for development and for clusters whose operators have no other.

A folder holds ``ca.pem`` and ``ca.key``, and for each node and client a ``NAME.pem`` and ``NAME.key``. Keys are on the
curve P-256, in PKCS #8, for their owner alone.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from raftkv.addresses import parse_address
from raftkv.clock import SystemClock
from raftkv.errors import RaftKVError
from raftkv.files import write_atomically, write_private
from raftkv.tls import TlsFiles, node_name

if TYPE_CHECKING:
    from cryptography.x509 import Certificate, GeneralName

CA_DAYS: Final = 3650
DAYS: Final = 365
_EARLY: Final = dt.timedelta(hours=1)
"""Certificates are valid from before they are made: clocks differ."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class CertificateError(RaftKVError):
    """A certificate cannot be made; the message says why."""


class Authority:
    """The CA in ``folder``. :meth:`create` and :meth:`open` make it."""

    def __init__(self, folder: Path, key: ec.EllipticCurvePrivateKey, certificate: Certificate) -> None:
        self._folder = folder
        self._key = key
        self._certificate = certificate

    @classmethod
    def create(cls, folder: Path, name: str = "raftkv", days: int = CA_DAYS) -> Authority:
        """Make a new one. Raises CertificateError if there is one already, or the folder cannot be written."""
        if any((folder / name).exists() for name in ("ca.key", "ca.pem")):
            raise CertificateError(
                f"{folder}: holds a CA already, ca.key or ca.pem; use another folder, or `cert node` and `cert client`"
            )
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(name)
        builder = _builder(subject, subject, key, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(ca=True), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        authority = cls(folder, key, builder.sign(key, hashes.SHA256()))
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise CertificateError(f"{folder}: cannot write there: {error.strerror or error}") from None
        authority._write("ca", key, authority._certificate)
        return authority

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """The one that was made there. Raises CertificateError."""
        try:
            key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
        except OSError as error:
            text = f"{folder}: no CA can be read there ({error.strerror or error}): `raftkv-admin cert init` makes one"
            raise CertificateError(text) from None
        except (ValueError, TypeError) as error:
            raise CertificateError(f"{folder}: ca.pem or ca.key is damaged: {error}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise CertificateError(f"{folder / 'ca.key'}: not a key that `raftkv-admin cert init` made")
        if key.public_key() != certificate.public_key():
            raise CertificateError(f"{folder}: ca.key is not the key of ca.pem")
        return cls(folder, key, certificate)

    def node(self, cluster_id: str, node: int, hosts: Iterable[str], days: int = DAYS) -> TlsFiles:
        """A new certificate that names a node, for its peers, and the ``hosts`` at which clients reach it."""
        names = [x509.DNSName(node_name(cluster_id, node)), *map(_host, dict.fromkeys(hosts))]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        return self._issue(f"node-{node}", f"node {node}", names, usages, days)

    def client(self, name: str, days: int = DAYS) -> TlsFiles:
        """A new certificate of a client. Raises CertificateError for a name that is no file's."""
        if not _NAME.fullmatch(name) or name == "ca" or name.startswith("node-"):
            raise CertificateError(
                f"a client cannot be named {name!r}: letters, digits and . _ @ -, not ca, not node-..."
            )
        return self._issue(name, name, [], [ExtendedKeyUsageOID.CLIENT_AUTH], days)

    def files(self, name: str) -> TlsFiles:
        """Where the certificate of ``name`` is, or is to be."""
        return TlsFiles(*(str(self._folder / file) for file in ("ca.pem", f"{name}.pem", f"{name}.key")))

    def _issue(
        self, file: str, name: str, names: Sequence[GeneralName], usages: Sequence[x509.ObjectIdentifier], days: int
    ) -> TlsFiles:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_subject(name), self._certificate.subject, key, days)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(ca=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        self._write(file, key, builder.sign(self._key, hashes.SHA256()))
        return self.files(file)

    def _write(self, name: str, key: ec.EllipticCurvePrivateKey, certificate: Certificate) -> None:
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        try:
            write_private(self._folder / f"{name}.key", pem.decode())
            write_atomically(self._folder / f"{name}.pem", certificate.public_bytes(Encoding.PEM).decode())
        except OSError as error:
            raise CertificateError(f"{self._folder}: cannot write there: {error.strerror or error}") from None


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, ca: bool) -> x509.KeyUsage:
    """What a key may do: sign certificates, or shake hands."""
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
        **dict.fromkeys(others, False),
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.fromtimestamp(SystemClock().wall(), dt.UTC)
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(min(now, now + dt.timedelta(days=days)) - _EARLY).not_valid_after(
        now + dt.timedelta(days=days)
    )


def _host(host: str) -> GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(parse_address(f"{host}:1").host)
    except ValueError:
        raise CertificateError(f"{host!r} is not the name or address of a host") from None
