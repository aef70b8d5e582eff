"""Settings from the environment: ``RAFTKV_NODE_LOG_LEVEL`` is ``node.log_level``, and comes before the file's.

An empty variable is one that is not set. ``RAFTKV_DIAL`` is ``2=HOST:PORT,3=HOST:PORT``, ``RAFTKV_NODES`` is
``1=ADDRESS/PEER_ADDRESS,2=ADDRESS/PEER_ADDRESS``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final, get_type_hints

from msgspec.structs import fields

from raftkv.errors import ConfigError
from raftkv.node.sections import Given, Section

_PREFIX: Final = "RAFTKV_"
_DIAL: Final = f"{_PREFIX}DIAL"
_NODES: Final = f"{_PREFIX}NODES"

_INSTEAD: Final = {"secret": "secret_file", "secret_file": "secret"}
"""Keys of which one takes the place of the other."""


@cache
def names(kind: type[Section]) -> dict[str, tuple[str, str]]:
    """Each variable that sets a key of a section of ``kind`` -> section and key."""
    return {
        f"{_PREFIX}{section}_{field.name}".upper(): (section, field.name)
        for section, hint in get_type_hints(kind).items()
        if isinstance(hint, type) and issubclass(hint, Section)
        for field in fields(hint)
    }


def used(kind: type[Section], environ: Mapping[str, str]) -> list[str]:
    """The variables of ``environ`` that set something."""
    return [name for name in (*names(kind), _DIAL, _NODES) if environ.get(name)]


def unknown(kind: type[Section], environ: Iterable[str]) -> list[str]:
    """Those that look like a setting, by the section that they begin with or the key that they end with, and are none.

    Others that begin with ``RAFTKV_`` are of the commands, or of a container's supervisor.
    """
    known = names(kind)
    begin = tuple({f"{_PREFIX}{section}_".upper() for section, _ in known.values()})
    end = tuple({f"_{key}".upper() for _, key in known.values()})
    ours = (name for name in environ if name.startswith(_PREFIX) and name not in (*known, _DIAL, _NODES))
    return sorted(name for name in ours if name.startswith(begin) or name.endswith(end))


def overlaid(kind: type[Section], raw: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """``raw``, with what variables set in place of what it has. Raises ConfigError that names the variable."""
    merged = dict(raw)
    for name, (section, key) in names(kind).items():
        table = merged.get(section, {})
        if (text := environ.get(name)) and isinstance(table, dict):
            instead = _INSTEAD.get(key)
            kept = {other: old for other, old in table.items() if other != instead or isinstance(old, Given)}
            merged[section] = {**kept, key: Given(text, name)}
    if text := environ.get(_DIAL):
        pairs = _pairs(_DIAL, text, "2=HOST:PORT")
        merged["dial"] = {Given(node, _DIAL): Given(address, _DIAL) for node, address in pairs}
    if text := environ.get(_NODES):
        merged["nodes"] = [_entry(node, places) for node, places in _pairs(_NODES, text, _NODE)]
    return merged


_NODE: Final = "1=HOST:PORT/HOST:PORT"


def _entry(node: str, places: str) -> dict[str, Given]:
    address, slash, peer_address = places.partition("/")
    if not slash:
        raise ConfigError(f"{_NODES}: {places!r} is not a client's and a peer's address, as in {_NODE}")
    parts = {"id": node, "address": address, "peer_address": peer_address}
    return {key: Given(text, _NODES) for key, text in parts.items()}


def _pairs(name: str, text: str, form: str) -> list[tuple[str, str]]:
    found = [item.strip().partition("=") for item in text.split(",") if item.strip()]
    for node, sign, value in found:
        if not sign:
            raise ConfigError(f"{name}: {node!r} is not of the form {form}, with a comma between two of them")
        if not value:
            raise ConfigError(f"{name}: nothing is given for {node!r}")
    if len({node for node, _, _ in found}) < len(found):
        raise ConfigError(f"{name}: a node appears twice")
    return [(node, value) for node, _, value in found]
