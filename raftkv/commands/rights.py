"""What users may be allowed to do, and how they and their roles may be called."""

from __future__ import annotations

import re
from enum import IntFlag
from typing import Annotated, Final

from msgspec import Meta

from raftkv.errors import InvalidArgument
from raftkv.text import shown


class Right(IntFlag):
    """What a role allows. NONE: what every user may do."""

    NONE = 0
    READ = 1
    WRITE = 2
    ADMIN = 4
    BACKUP = 8


DATA: Final = Right.READ | Right.WRITE
"""Rights that a role may have for some keys only."""
ALL: Final = DATA | Right.ADMIN | Right.BACKUP

DIGEST_BYTES: Final = 32
"""Of a token's SHA-256."""
SALT_BYTES: Final = 16
PASSWORD_BYTES: Final = SALT_BYTES + 32
"""Of a password: its salt, and scrypt's result."""

MAX_USERS: Final = 1000
MAX_ROLES: Final = 1000
MAX_GRANTS: Final = 64
"""Of one role: all of them are looked at for a key."""
MAX_ROLES_OF_USER: Final = 16

_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z"
Name = Annotated[str, Meta(pattern=_NAME)]
"""Of a user or a role. Without a colon, which ends it where a password follows."""
Digest = Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
Password = Annotated[bytes, Meta(min_length=PASSWORD_BYTES, max_length=PASSWORD_BYTES)]


def parse_right(text: str) -> Right:
    """The right of this name, in lower case. Raises InvalidArgument."""
    for right in Right:
        if right.name and right and text == right.name.lower():
            return right
    known = ", ".join(right_names(ALL))
    raise InvalidArgument(f"{shown(text)} is not a right: there are {known}")


def right_names(rights: Right) -> list[str]:
    """Their names, in lower case."""
    return [right.name.lower() for right in Right if right & rights and right.name]


def check_name(name: str) -> None:
    """Raises InvalidArgument unless a user or a role may be called so."""
    if not re.match(_NAME, name):
        raise InvalidArgument(
            f"{shown(name)} is not a name: 1 to 64 ASCII letters, digits and . _ @ -, a letter or digit first"
        )
