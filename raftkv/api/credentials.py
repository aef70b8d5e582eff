"""What users show to say who they are, and what is kept of it: never the tokens and passwords themselves."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from binascii import Error as BadBase64
from typing import Final, NamedTuple

from raftkv.commands.rights import SALT_BYTES
from raftkv.errors import InvalidArgument

METADATA: Final = "authorization"
"""Of gRPC's calls, and HTTP's header."""

_TOKEN_BYTES: Final = 32
_PREFIX: Final = "rkv-"
"""By which people and scanners for secrets know what it is."""
MAX_CREDENTIALS: Final = 1024
"""Characters of a token, or of a name and a password."""

_COST: Final = 2**14
"""scrypt's N: with 8 blocks 16 MiB and about 50 ms of one core."""
_BLOCK: Final = 8
_KEY_BYTES: Final = 32


def new_token() -> str:
    """A user's token: 256 random bits."""
    return _PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)


def digest_of(token: str) -> bytes:
    """What the cluster keeps of a token: its SHA-256. It is random, so there is nothing to guess."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def hashed(password: str, salt: bytes | None = None) -> bytes:
    """What the cluster keeps of a password: ``salt``, by default a new one, and scrypt's result. Takes a while."""
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    secret = password.encode("utf-8", "surrogateescape")
    return salt + hashlib.scrypt(secret, salt=salt, n=_COST, r=_BLOCK, p=1, maxmem=64 * 2**20, dklen=_KEY_BYTES)


def verified(password: str, kept: bytes) -> bool:
    """Whether ``kept`` is of this password. Takes a while."""
    return hmac.compare_digest(hashed(password, kept[:SALT_BYTES]), kept)


def check_credentials(credentials: str) -> str:
    """``credentials``, a token or ``NAME:PASSWORD``, if they can be sent. Raises InvalidArgument, which does not show
    them."""
    if not 0 < len(credentials) <= MAX_CREDENTIALS:
        raise InvalidArgument(f"a token of {len(credentials)} characters; it has 1 to {MAX_CREDENTIALS}")
    if ":" not in credentials and not (credentials.isascii() and credentials.isprintable() and " " not in credentials):
        raise InvalidArgument("a token has ASCII letters, digits and signs only")
    return credentials


def authorization(credentials: str) -> str:
    """The header for a token, or for ``NAME:PASSWORD``."""
    if ":" in credentials:
        return "Basic " + b64encode(credentials.encode("utf-8", "surrogateescape")).decode()
    return f"Bearer {credentials}"


class Shown(NamedTuple):
    """What a header holds. ``name``: of the user, "" with a token, which names its user."""

    name: str
    secret: str


def shown(header: str) -> Shown | None:
    """What ``header`` holds, None if it is of no kind that is known."""
    kind, _, rest = header.partition(" ")
    rest = rest.strip()
    if kind.lower() == "bearer" and 0 < len(rest) <= MAX_CREDENTIALS:
        return Shown("", rest)
    if kind.lower() != "basic":
        return None
    try:
        name, colon, secret = b64decode(rest, validate=True).decode("utf-8", "surrogateescape").partition(":")
    except (BadBase64, ValueError):
        return None
    return Shown(name, secret) if name and colon and len(name) + len(secret) < MAX_CREDENTIALS else None
