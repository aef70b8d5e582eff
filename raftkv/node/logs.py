"""A node's log: to stderr, or to a file that rotates by size and can be opened anew; always limited."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import FileIO, TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from raftkv.errors import ConfigError
from raftkv.log_limit import REQUEST, LogLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from raftkv.node.config import NodeSection

AUDIT_LOG: Final = "audit.log"
"""The audit trail, in the data folder."""

log = logging.getLogger(__name__)


class Lines(logging.Formatter):
    """One line per record, whatever its text contains: nobody can forge lines or send commands to terminals."""

    def __init__(self, node: int) -> None:
        super().__init__(f"%(asctime)s %(levelname).1s node {node} %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 the library's name
        if not record.message.isprintable():
            record.message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in record.message)
        return super().formatMessage(record)


class JsonLines(logging.Formatter):
    """One JSON object per record and line, in ASCII. ``request`` and ``traceback`` are in it where there is one."""

    def __init__(self, node: int) -> None:
        super().__init__()
        self._node = node

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "node": self._node,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := getattr(record, REQUEST, ""):
            found["request"] = request
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            found["stack"] = record.stack_info
        return json.dumps(found).replace("\x7f", "\\u007f")


class LogFile(RotatingFileHandler):
    """stdout and stderr follow if they are the file, as with ``raftkv up``.

    So what is not logged, by libraries in C or at a crash, is bounded and found in the same place. Lines that cannot be
    written, as when the disk is full, are counted, and their number is written once that is possible.
    """

    _lost = 0
    _problem = ""

    def __init__(self, path: str, max_bytes: int, backups: int) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=backups, encoding="utf-8", errors="backslashreplace")

    def _open(self) -> TextIOWrapper:
        # Without a buffer: what the disk does not take is lost at once, rather than in the way of what follows.
        file = FileIO(self.baseFilename, "a", opener=_opened)
        return TextIOWrapper(file, self.encoding, self.errors, write_through=True)

    def emit(self, record: logging.LogRecord) -> None:
        lost, self._lost = self._lost, 0
        if lost:
            text = f"lines lost before this one: {lost}, the log could not be written: {self._problem}"
            super().emit(logging.LogRecord(log.name, logging.WARNING, __file__, 0, text, None, None))
        if self._lost:
            self._lost += lost
        else:
            super().emit(record)
        if self._lost == 1:
            # stderr may be the same file, or closed.
            with suppress(OSError, AttributeError):
                sys.stderr.write(f"raftkv: the log cannot be written: {self._problem}\n")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 the library's name
        problem = sys.exc_info()[1]
        if isinstance(problem, OSError):
            self._lost, self._problem = self._lost + 1, str(problem)
        else:
            super().handleError(record)

    def followers(self) -> list[int]:
        """Those of the file numbers 1 and 2 that are this file."""
        return [number for number in (1, 2) if os.path.sameopenfile(number, self._number())]

    def lead(self, followers: list[int]) -> None:
        """Make ``followers`` this file."""
        for number in followers:
            os.dup2(self._number(), number)

    def succeed(self, before: LogFile) -> None:
        """Take over from ``before`` who follows it, and how many lines it has lost."""
        self._lost, self._problem = before._lost, before._problem
        self.lead(before.followers())

    def _number(self) -> int:
        self.stream = self.stream or self._open()
        return self.stream.fileno()

    def doRollover(self) -> None:  # noqa: N802 the library's name
        followers = self.followers()
        try:
            super().doRollover()
        except OSError as problem:
            # As where the file may be written but not its folder: one line, not one for each that follows.
            self.maxBytes = 0
            log.warning("the log cannot be rotated and keeps growing: %s", problem)
        self.lead(followers)


def _check_place(path: str, data_dir: str) -> None:
    """Raises ConfigError if ``path`` could be a file of the node's data, which the log would destroy."""
    file, folder = Path(os.path.realpath(path)), Path(os.path.realpath(data_dir))
    if file.is_relative_to(folder) and not (file.parent == folder and file.suffix == ".log"):
        raise ConfigError(f"node.log_file: {path} is in the data folder, where it may only be {folder}/NAME.log")
    if file == folder / AUDIT_LOG:
        raise ConfigError(f"node.log_file: {path} is the node's audit trail")


def _opened(path: str, flags: int) -> int:
    """A pipe that nobody reads is an error, not a wait."""
    number = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(number, True)
    return number


class NodeLog(logging.Handler):
    """Where all log lines of the process go, once :meth:`use` was called. ``now``: monotonic seconds."""

    def __init__(self, node: int, now: Callable[[], float]) -> None:
        super().__init__()
        self._formats = {"text": Lines(node), "json": JsonLines(node)}
        self._limit = LogLimit(now)
        self._output: logging.Handler | None = None

    def use(self, section: NodeSection) -> None:
        """Log as ``section`` says from now on; a file is opened anew. Raises ConfigError, and all stays as it was."""
        output: logging.Handler
        if section.log_file is None:
            output = logging.StreamHandler(sys.stderr)
        else:
            _check_place(section.log_file, section.data_dir)
            try:
                output = LogFile(section.log_file, section.log_max_bytes, section.log_backups)
            except OSError as problem:
                text = f"node.log_file: cannot write {section.log_file}: {problem.strerror or problem}"
                raise ConfigError(text) from None
        output.setFormatter(self._formats[section.log_format])
        with self._lock():
            before, self._output = self._output, output
            if isinstance(before, LogFile) and isinstance(output, LogFile):
                output.succeed(before)
            if before is not None:
                before.close()
        root = logging.getLogger()
        root.setLevel(section.log_level.upper())
        if self not in root.handlers:
            root.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the lock held."""
        self._write(self._limit.take(record))

    def sweep(self) -> None:
        """Say what was left out in minutes that are over. To be called now and then, as nothing else may be logged."""
        with self._lock():
            self._write(self._limit.due())

    def close(self) -> None:
        """Say all that was left out, and log nothing more."""
        logging.getLogger().removeHandler(self)
        with self._lock():
            self._write(self._limit.rest())
            if self._output is not None:
                self._output.close()
                self._output = None
        super().close()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def _write(self, records: list[logging.LogRecord]) -> None:
        for record in records:
            if self._output is not None:
                self._output.emit(record)
