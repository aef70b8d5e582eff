"""From folders to pages: which folders are runs, and the files that are written into them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from faults.report.charts import charts, label
from faults.report.journal import EVENTS, HISTORY, JournalError, Recorded, load
from faults.report.stats import KIND_COLUMNS, About, RunStats, merged, merged_events, stats_of
from faults.report.stories import Stories, stories_of

REPORT: Final = "report.html"
INDEX: Final = "index.html"

_PAGES: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True, slots=True)
class RunState:
    """How a run ended, in words; ``style``: the class of the element that says so."""

    word: str
    style: str


_PASSED: Final = RunState("passed", "passed")
_FAILED: Final = RunState("FAILED", "failed")
_UNDECIDED: Final = RunState("UNDECIDED", "undecided")
_BROKEN_OFF: Final = RunState("DID NOT END", "undecided")
_UNREADABLE: Final = RunState("UNREADABLE", "failed")


def state_of(stats: RunStats) -> RunState:
    """Of a single run. One with keys that the checker gave up on has not passed."""
    (about,) = stats.runs
    if about.passed is None:
        return _BROKEN_OFF
    if not about.passed:
        return _FAILED
    return _UNDECIDED if stats.undecided else _PASSED


def write_report(folder: Path) -> Path:
    """Write the page of the run in ``folder``, or those of all runs in its folders and one that leads to them.

    Returns the page that a reader should open. Raises JournalError if there is no run or it cannot be read or written;
    of several runs, one that cannot be read is told as such in the page above them.
    """
    if _is_run(folder):
        return _write_run(folder)[0]
    runs = sorted(one for one in folder.iterdir() if one.is_dir() and _is_run(one)) if folder.is_dir() else []
    if not runs:
        raise JournalError(f"{folder}: holds no run: neither it nor a folder in it has a {HISTORY}")
    return _write_index(folder, runs)


def _is_run(folder: Path) -> bool:
    return (folder / HISTORY).exists() or (folder / EVENTS).exists()


def _write_run(folder: Path) -> tuple[Path, RunStats]:
    recorded = load(folder)
    try:
        stats = stats_of(recorded)
        text = run_page(recorded, stats, folder.name)
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise JournalError(f"{folder / EVENTS}: an event lacks what it should say: {problem!r}") from problem
    return _written(folder / REPORT, text), stats


@dataclass(frozen=True, slots=True)
class _Line:
    """One run in the index. ``stats`` None: it could not be read, and ``problem`` says why."""

    name: str
    stats: RunStats | None
    state: RunState
    problem: str = ""


def _write_index(folder: Path, runs: Iterable[Path]) -> Path:
    lines = []
    for run in runs:
        try:
            _, stats = _write_run(run)
            (about,) = stats.runs
            lines.append(_Line(run.name, stats, state_of(stats), next(iter(about.problems), "")))
        except JournalError as problem:
            lines.append(_Line(run.name, None, _UNREADABLE, str(problem)))
    stats = merged(one.stats for one in lines if one.stats is not None)
    bad = [one for one in lines if one.state is not _PASSED]
    text = _PAGES.get_template("index.html").render(
        title="Chaos runs",
        lines=lines,
        bad=bad,
        report=REPORT,
        stats=stats,
        kind_columns=KIND_COLUMNS,
    )
    return _written(folder / INDEX, text)


def _written(path: Path, text: str) -> Path:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as problem:
        raise JournalError(f"{path}: cannot be written: {problem}") from None
    return path


# -- one run's page


def run_page(recorded: Recorded, stats: RunStats, folder: str) -> str:
    """The page of one run as text."""
    (about,) = stats.runs
    stories = Stories() if state_of(stats) is _PASSED else stories_of(recorded.history)
    drawn = charts(recorded, stats.faults)
    return _PAGES.get_template("run.html").render(
        title=f"{about.scenario}: chaos run" if about.scenario else "Chaos run",
        about=about,
        folder=folder,
        state=state_of(stats),
        stories=stories,
        stats=stats,
        kind_columns=KIND_COLUMNS,
        facts=list(_facts(merged_events(recorded, "run"), about)),
        charts=drawn,
        drawings=[{"name": one.name, "data": one.data, "layout": one.layout} for one in drawn],
        actions=recorded.of("action"),
        label=label,
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - the library's own text
    )


_FACTS: Final = (
    "seed",
    "planted",
    "commit",
    "started",
    "nodes",
    "groups",
    "replicas",
    "clients",
    "workloads",
    "version",
    "python",
    "cores",
)


def _facts(run: dict[str, Any], about: About) -> Iterable[tuple[str, str]]:
    """What the run says of itself, and how long it took."""
    for name in _FACTS:
        value = run.get(name)
        if value not in (None, "", []):
            yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    yield "length", f"{about.seconds:.1f} s"
