"""Types of the commands' parameters: durations and paths; and an option whose default is worked out later."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import click
from click.types import OptionHelpExtra

from raftkv.cli.files import STANDARD

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER: Final = r"(?:\d+(?:\.\d*)?|\.\d+)"
_PART: Final = re.compile(rf"({_NUMBER})(ms|[smhd])", re.ASCII)
_SECONDS: Final = re.compile(rf"{_NUMBER}(?:[eE][+-]?\d+)?", re.ASCII)
NODE: Final = click.IntRange(1, 65535)
GROUP: Final = click.IntRange(1, 2**32 - 1)
"""Ids that a cluster can have at all."""

_LONGEST: Final = 30 * 86400.0
"""Seconds that a command may wait at most: a month, so that a slip of the keyboard is noticed."""

_FORM: Final = "write seconds, or 500ms, 30s, 5m, 1h, 7d"


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``1.5``, ``500ms``, ``30s``, ``5m``, ``1h30m``, ``7d``. Raises ValueError.

    Every number needs its unit if one has any: ``1h30`` could be minutes or seconds.
    """
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration: {_FORM}")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def duration_text(seconds: float) -> str:
    """The shortest text with one unit that :func:`parse_duration` reads as ``seconds``."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % _UNITS[unit] == 0:
            return f"{seconds / _UNITS[unit]:g}{unit}"
    return f"{seconds * 1000:g}ms" if 0 < seconds < 1 else f"{seconds:.10g}s"


class Duration(click.ParamType[float]):
    """A duration, in seconds for the code: at least ``least`` (None: more than 0) and at most ``most``."""

    name = "duration"

    def __init__(self, most: float = _LONGEST, *, least: float | None = None) -> None:
        self._most = most
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value) if isinstance(value, int | float) else parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        # Neither NaN nor infinity passes this.
        if not seconds <= self._most or not (seconds > 0 if self._least is None else seconds >= self._least):
            least = "more than 0" if self._least is None else f"at least {duration_text(self._least)}"
            self.fail(f"{value!r} is out of range: {least}, at most {duration_text(self._most)}", param, ctx)
        return seconds


class FilePath(click.Path):
    """A path that names something: an empty text is a variable that was not set, not the current folder.

    ``stream``: it may be ``-`` for stdin or stdout, and comes as text, in which ``./-`` is something else.
    """

    def __init__(self, *, folder: bool = False, stream: bool = False) -> None:
        super().__init__(
            file_okay=not folder,
            dir_okay=folder,
            readable=not stream,
            allow_dash=stream,
            path_type=str if stream else Path,
        )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("", b""):
            self.fail("the path is empty", param, ctx)
        if value == STANDARD and not self.allow_dash:
            self.fail("stdin and stdout are not possible here (./- is a file or folder of that name)", param, ctx)
        return super().convert(value, param, ctx)


class LaterDefault(click.Option):
    """An option without a value unless it is given. ``shown``: what help says of the default that is taken then."""

    def __init__(self, *args: Any, shown: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._shown = shown

    def get_help_extra(self, ctx: click.Context) -> OptionHelpExtra:
        return {**super().get_help_extra(ctx), "default": self._shown}
