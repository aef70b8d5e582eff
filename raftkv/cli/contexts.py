"""Clusters that a user has given names to: a file in the user's configuration, for the user alone.

``~/.config/raftkv/contexts.json``, or what ``RAFTKV_CONTEXTS`` names: names with endpoints and paths of certificates,
and which of them is used if a command names no cluster.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from raftkv.errors import ConfigError
from raftkv.files import write_private

if TYPE_CHECKING:
    from raftkv.client.tls import TLS

VARIABLE: Final = "RAFTKV_CONTEXTS"
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Context:
    """How a cluster is reached. ``ca``, ``cert``, ``key``, ``server_name``: as :class:`raftkv.TLS` has them.
    ``token``: as :class:`raftkv.AsyncClient` has it.
    """

    endpoints: str
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    server_name: str | None = None
    token: str | None = None

    def told(self) -> dict[str, str | None]:
        """What may be shown: all but the token, of which only that it is there."""
        return {**asdict(self), "token": None if self.token is None else "known"}

    def tls(self) -> TLS | None:
        """Raises ConfigError for a certificate without CAs or without its key."""
        from raftkv.client.tls import TLS

        if self.ca is None:
            if self.cert or self.key or self.server_name:
                raise ConfigError("TLS needs --tls-ca, the CAs that vouch for the cluster's nodes")
            return None
        return TLS(self.ca, self.cert, self.key, self.server_name)


@dataclass(frozen=True, slots=True)
class Contexts:
    """What the file holds. ``current``: "" if none is."""

    named: dict[str, Context]
    current: str = ""

    def get(self, name: str) -> Context:
        """Raises ConfigError if there is none of that name."""
        if name not in self.named:
            known = ", ".join(sorted(self.named)) or "none"
            raise ConfigError(f"there is no context {name!r}; there are: {known}")
        return self.named[name]


def path() -> Path:
    """Where the file is."""
    if given := os.environ.get(VARIABLE):
        return Path(given)
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(home).expanduser() / "raftkv" / "contexts.json"


def load() -> Contexts:
    """The user's contexts; none if there is no file. Raises ConfigError."""
    file = path()
    try:
        raw: Any = json.loads(file.read_text(encoding="utf-8"))
        if raw["format"] != _FORMAT:
            raise ConfigError(f"{file}: written by another version of raftkv (format {raw['format']})")
        return Contexts({name: _context(entry) for name, entry in raw["contexts"].items()}, str(raw["current"]))
    except (FileNotFoundError, NotADirectoryError):
        return Contexts({})
    except OSError as error:
        raise ConfigError(f"{file}: cannot read it: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: damaged: {error!r}") from None


def save(contexts: Contexts) -> None:
    """Write the file, for nobody else to read. Raises ConfigError."""
    file = path()
    named = {
        name: {key: value for key, value in asdict(context).items() if value is not None}
        for name, context in sorted(contexts.named.items())
    }
    text = json.dumps({"format": _FORMAT, "current": contexts.current, "contexts": named}, indent=2) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(file, text)
    except OSError as error:
        raise ConfigError(f"{file}: cannot write it: {error.strerror or error}") from None


def _context(entry: dict[str, Any]) -> Context:
    if not all(isinstance(value, str) for value in entry.values()) or not entry.keys() <= _KEYS:
        raise ValueError(entry)
    return Context(**entry)


_KEYS: Final = frozenset(field.name for field in fields(Context))
