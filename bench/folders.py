"""Where measurements leave what they found, and the options of commands that say so."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click

_FOLDER: Final = Path("bench-results")

data_option: Final = click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    help="Folder on the disk that servers are to write to.",
    show_default="that of temporary files",
)
overwrite_option: Final = click.option(
    "--overwrite", is_flag=True, help="Replace what an earlier run left in that folder."
)


def out_option(what: str) -> Callable[[Any], Any]:
    """The option ``--out``; ``what``: goes into that folder."""
    return click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        show_default=f"a new one in {_FOLDER}/",
        help=f"Folder for {what}.",
    )


def chosen(out: Path | None, started: datetime, suffix: str = "", *, overwrite: bool | None = None) -> Path:
    """``out``, or a new folder named by ``started`` and ``suffix``. ``overwrite``: None = the command cannot.

    Raises UsageError if there is something in it already that is not to be overwritten.
    """
    folder = out or _FOLDER / f"{started:%Y%m%d-%H%M%S}{suffix}"
    if not overwrite and folder.exists() and any(folder.iterdir()):
        instead = "" if overwrite is None else ", or say --overwrite"
        raise click.UsageError(f"{folder} is not empty: name a new folder with --out{instead}")
    return folder
