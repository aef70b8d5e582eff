"""Values in messages for people."""

from __future__ import annotations

from typing import Final

_LONGEST: Final = 80
"""Characters of a value that a message shows."""


def shown(value: object) -> str:
    """``value`` for a message: as Python writes it, bytes as text if they are, cut if it is long."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            pass
    if isinstance(value, bytes | str) and len(value) > _LONGEST:
        return f"{value[:_LONGEST]!r}..."
    try:
        text = repr(value)
    except ValueError:  # a number of thousands of digits
        return f"{type(value).__name__} of great length"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
