"""The commands: ``raftkv``, which is also ``python -m raftkv``, and ``raftkv-admin``. They need ``raftkv[server]``."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """The command ``raftkv``."""
    try:
        from raftkv.cli.main import main as command
    except ModuleNotFoundError as error:
        _lacks("raftkv", error)
    command()


def admin() -> NoReturn:
    """The command ``raftkv-admin``."""
    try:
        from raftkv.cli.admin.main import main as command
    except ModuleNotFoundError as error:
        _lacks("raftkv-admin", error)
    command()


def _lacks(name: str, error: ModuleNotFoundError) -> NoReturn:
    """A client's installation has no commands."""
    if (error.name or "raftkv").partition(".")[0] in ("raftkv", "shards"):
        raise error
    sys.exit(f"{name}: {error.name} is not installed: pip install 'raftkv[server]'")


if __name__ == "__main__":
    main()
