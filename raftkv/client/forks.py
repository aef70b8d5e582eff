"""How often this process has been forked from the one that imported raftkv: a client must not be used after a fork.

Asked with every operation, so it is a number in memory and not a system call.
"""

from __future__ import annotations

import os

_forks = 0


def forks() -> int:
    """Another number in a child process than in its parent."""
    return _forks


def _forked() -> None:
    global _forks  # noqa: PLW0603 - the only state, and the hook takes no argument
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
