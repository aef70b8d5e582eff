"""Guarantee: a run's page says how it ended, whatever the run left, shows keys and values as what they are, and loads
nothing from anywhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as plots
import pytest
from click.testing import CliRunner

from faults import cli
from faults.check.history import History, Kind, Outcome
from faults.report import charts
from faults.report.charts import SHOWN, bucket_width, escaped, thinned
from faults.report.journal import EVENTS, HISTORY, JournalError, Recorded, load
from faults.report.stats import stats_of
from faults.report.stories import stories_of
from faults.report.writing import INDEX, REPORT, write_report
from tests.chaos_runs import believable

HOSTILE = "<script>alert('x')</script>&<b>"


def page(folder: Path) -> str:
    """The run's page without plotly's own text."""
    text = write_report(folder).read_text()
    return re.sub(r"<script>/\*\*.*?\* plotly\.js.*?</script>", "", text, flags=re.DOTALL)


def verdict(text: str) -> str:
    found = re.search(r'<div class="verdict.*?</div>', text, re.DOTALL)
    assert found
    return " ".join(re.sub(r"<[^>]+>", " ", found[0]).split())


def drawings(text: str) -> list[dict[str, Any]]:
    found = re.search(r'<script id="drawings" type="application/json">(.*?)</script>', text, re.DOTALL)
    assert found
    return list(json.loads(found[1]))


# -- how it ended


def test_a_run_that_passed_says_so(tmp_path: Path) -> None:
    text = page(believable(tmp_path))
    assert verdict(text) == "passed : every promise was kept."
    assert "Impossible histories" not in text
    assert "clock jump" in text
    assert "this machine does not let us set the clock" in text


def test_a_run_that_failed_names_its_problems_and_tells_the_guilty_keys_story(tmp_path: Path) -> None:
    text = page(believable(tmp_path, violated=True))
    assert verdict(text) == "FAILED history of r2: violation"
    assert "Key <code>r2</code>: violation" in text
    assert "<mark>! |" in text
    assert "the state before the impossible operation" in text


def test_a_run_that_broke_off_says_that_it_did_not_end_and_is_checked_as_far_as_it_came(tmp_path: Path) -> None:
    text = page(believable(tmp_path / "good", ended=False))
    assert verdict(text).startswith("DID NOT END : the run broke off after 28.")
    assert "The histories of all 9 keys were checked once more" in text
    assert "not counted" in text
    assert "Key <code>r2</code>: violation" in page(believable(tmp_path / "bad", ended=False, violated=True))


def test_a_key_that_the_checker_gave_up_on_is_no_pass(tmp_path: Path) -> None:
    events = believable(tmp_path) / EVENTS
    events.write_text(events.read_text().replace('"undecided keys": 0', '"undecided keys": 2'))
    assert verdict(page(tmp_path)) == "UNDECIDED : the checker gave up on 2 keys. That is not a pass."


def test_a_run_of_which_nothing_is_left_but_its_files_is_shown(tmp_path: Path) -> None:
    (tmp_path / HISTORY).write_text("")
    text = page(tmp_path)
    assert verdict(text).startswith("DID NOT END")
    assert "No faults were injected." in text
    (tmp_path / EVENTS).write_text("")
    assert page(tmp_path) == text


def test_a_run_without_faults_has_charts_but_no_gaps(tmp_path: Path) -> None:
    text = page(believable(tmp_path, faults=False))
    assert verdict(text).startswith("passed")
    assert [one["name"] for one in drawings(text)] == ["clients", "nodes", "latency", "throughput"]


def test_a_history_without_events_is_shown(tmp_path: Path) -> None:
    (believable(tmp_path) / EVENTS).unlink()
    assert verdict(page(tmp_path)).startswith("DID NOT END")


# -- what it shows


def test_hostile_keys_values_and_texts_are_shown_as_what_they_are(tmp_path: Path) -> None:
    believable(tmp_path, violated=True, key=HOSTILE, scenario=HOSTILE)
    events = tmp_path / EVENTS
    events.write_text(events.read_text().replace("the process is in state T", HOSTILE).replace("no leader", HOSTILE))
    text = page(tmp_path)
    assert HOSTILE not in text
    assert "alert('x')" not in text
    assert text.count("<script") == 2, "the drawings and the page's own"
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&lt;b&gt;" in text
    shown = [told for told in drawings(text)[0]["data"][0]["text"] if "alert" in told]
    assert shown
    assert not any("<" in told for told in shown), "plotly takes some HTML"


def test_texts_for_plotly_are_escaped_and_cut() -> None:
    assert escaped("<b>a & b</b>") == "&lt;b&gt;a &amp; b&lt;/b&gt;"
    assert escaped("x" * 500, 10) == "x" * 10 + "…"


def test_nothing_is_loaded_from_anywhere(tmp_path: Path) -> None:
    text = page(believable(tmp_path))
    assert re.findall(r'(?:src|href|action)="([^"#]*)"', text) == ["data:,", HISTORY, EVENTS]
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert "url(" not in text


def test_charts_are_such_as_plotly_takes(tmp_path: Path) -> None:
    """Plotly for Python knows which names and values plotly.js takes."""
    drawn = drawings(page(believable(tmp_path)))
    assert [one["name"] for one in drawn] == ["clients", "nodes", "gaps", "latency", "throughput"]
    for one in drawn:
        text = re.sub(r'"--[a-z0-9-]+"', '"#123456"', json.dumps(one))
        figure = plots.Figure(json.loads(text)["data"], json.loads(text)["layout"])
        assert len(figure.data) == len(one["data"]) > 0


def test_every_colour_is_one_of_the_style_sheet_in_light_and_dark(tmp_path: Path) -> None:
    believable(tmp_path)
    recorded = load(tmp_path)
    used = set(re.findall(r'"(--[a-z0-9-]+)"', json.dumps([one.data for one in charts_of(recorded)])))
    used |= set(re.findall(r'"(--[a-z0-9-]+)"', json.dumps([one.layout for one in charts_of(recorded)])))
    style = (Path(charts.__file__).with_name("templates") / "style.css").read_text()
    light, dark = style.split("@media (prefers-color-scheme: dark)", 1)
    for part in (light, dark):
        assert used - set(re.findall(r"(--[a-z0-9-]+):", part)) == set()


def charts_of(recorded: Recorded) -> list[charts.Chart]:
    return charts.charts(recorded, stats_of(recorded).faults)


def test_all_time_axes_show_the_same_time(tmp_path: Path) -> None:
    drawn = charts_of(load(believable(tmp_path)))
    assert {tuple(one.layout["xaxis"]["range"]) for one in drawn} == {(0, 30.0)}
    assert len({one.layout["margin"]["l"] for one in drawn}) == 1


def test_leaders_lead_until_the_next_one_is_told_and_nobody_leads_in_between() -> None:
    events = [
        {"t": float(time), "event": "leader", "group": 1, "node": node, "term": 1}
        for time, node in ((1, 2), (3, 0), (4, 1))
    ]
    recorded = Recorded(History(), [*events, {"t": 9.0, "event": "phase", "name": "end"}])
    nodes = next(one for one in charts_of(recorded) if one.name == "nodes")
    (leader,) = [one for one in nodes.data if one["name"] == "group 1 led"]
    assert leader["x"] == [1.0, 3.0, None, 4.0, 9.0, None]
    assert leader["y"][0] > leader["y"][3], "node 1 has the row above that of node 2"


def test_a_node_is_down_from_its_kill_until_it_is_ready() -> None:
    events: list[dict[str, Any]] = [
        {"t": 1.0, "event": "node", "node": 1, "state": "killed"},
        {"t": 3.0, "event": "node", "node": 1, "state": "starts"},
        {"t": 4.5, "event": "node", "node": 1, "state": "ready"},
        {"t": 6.0, "event": "node", "node": 1, "state": "paused"},
        {"t": 9.0, "event": "phase", "name": "end"},
    ]
    nodes = next(one for one in charts_of(Recorded(History(), events)) if one.name == "nodes")
    (down,) = [one for one in nodes.data if one["name"] == "node down"]
    assert (down["base"], down["x"]) == ([1.0, 6.0], [3.5, 3.0])


def test_names_of_faults_that_follow_each_other_closely_are_shortened_and_shades_do_not_add_up() -> None:
    events: list[dict[str, Any]] = [{"t": 100.0, "event": "phase", "name": "end"}]
    for number, began in enumerate((10.0, 11.0, 60.0)):
        events.append({"t": began, "event": "fault", "id": number, "kind": "kill", "how": "", "targets": [1]})
        events.append({"t": began + 3, "event": "healed", "id": number})
        events.append({"t": began + 5, "event": "recovered", "id": number, "healthy": True})
    drawn = {one.name: one for one in charts_of(Recorded(History(), sorted(events, key=lambda one: one["t"])))}
    (names,) = [one for one in drawn["nodes"].data if one.get("mode") == "text"]
    assert [text.strip() for text in names["text"]] == ["#1", "#2 kill", "#3 kill"]
    shades = [(one["x0"], one["x1"]) for one in drawn["latency"].layout["shapes"]]
    assert shades == [(10.0, 14.0), (60.0, 63.0), (13.0, 16.0), (63.0, 65.0)]


@pytest.mark.parametrize(("seconds", "width"), [(0.001, 0.05), (30, 0.5), (600, 5), (86_400, 600)])
def test_buckets_are_few_and_round(seconds: float, width: float) -> None:
    assert bucket_width(seconds) == width


# -- much of it


def many(count: int) -> History:
    history = History()
    for number in range(count):
        one = history.begin(f"c{number % 8}a", Kind.GET, "k", number / 1000)
        one.outcome, one.version = Outcome.OK, 0
        one.answered = one.ended = one.began + (5.0 if number == 777 else 0.001)
        if number % 1000 == 0:
            one.outcome, one.error = Outcome.REFUSED, "NoLeader"
    return history


def test_a_timeline_of_many_is_thinned_out_but_for_what_went_wrong_and_says_so() -> None:
    history = many(60_000)
    shown = thinned(history.operations)
    assert sum(one.outcome is Outcome.OK for one in shown) == SHOWN
    assert sum(one.outcome is Outcome.REFUSED for one in shown) == 60
    assert 777 in {one.number for one in shown}, "the slowest"
    assert shown == sorted(shown, key=lambda one: one.number)
    thirds = [sum(one.began // 20 == third for one in shown) for third in range(3)]
    assert max(thirds) - min(thirds) < SHOWN / 10 + 100
    clients = charts_of(Recorded(history, []))[0]
    assert "Thinned out: 20,060 of 60,000 operations" in clients.caption
    assert [one["name"] for one in clients.data] == ["ok (59,940)", "refused (60)"]


def test_a_timeline_of_few_is_whole() -> None:
    history = many(500)
    assert thinned(history.operations) == history.operations
    assert "Thinned" not in charts_of(Recorded(history, []))[0].caption


def test_at_most_a_few_stories_are_told_and_the_other_guilty_keys_are_named() -> None:
    history = History()
    for key in range(12):
        one = history.begin("c", Kind.GET, f"k{key:02}", float(key))
        one.outcome, one.found, one.version = Outcome.OK, "never written", 3
        one.answered = one.ended = key + 0.5
    stories = stories_of(history)
    assert (stories.checked, len(stories.told), stories.others) == (12, 8, ("k08", "k09", "k10", "k11"))


def test_an_impossible_stale_read_is_told() -> None:
    history = History()
    one = history.begin("c", Kind.GET, "k", 0.0)
    one.stale, one.outcome, one.found, one.version, one.answered, one.ended = True, Outcome.OK, "x", 1, 1.0, 1.0
    (story,) = stories_of(history).told
    assert (story.key, story.what) == ("k", "impossible stale reads")
    assert "stale get k -> 'x' version 1" in story.lines[0]


# -- several runs, and the command


def test_several_runs_get_a_page_above_their_own(tmp_path: Path) -> None:
    believable(tmp_path / "good & well")
    believable(tmp_path / "bad", violated=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / HISTORY).write_text("no\nhistory\n")
    made = write_report(tmp_path)
    text = made.read_text()
    assert made == tmp_path / INDEX
    assert verdict(text).startswith(
        "FAILED : 2 of 3 runs did not pass. bad: FAILED: history of r2: violation torn: UNR"
    )
    assert re.findall(r'href="([^"]+html)"', text) == ["bad/report.html", "good%20%26%20well/report.html"]
    for name in ("bad", "good & well"):
        assert (tmp_path / name / REPORT).exists()
    assert not (tmp_path / "torn" / REPORT).exists()


def test_several_runs_that_passed_have_passed(tmp_path: Path) -> None:
    for seed in (1, 2):
        believable(tmp_path / str(seed), seed=seed)
    assert verdict(write_report(tmp_path).read_text()) == "passed : every promise was kept in all 2 runs."


def command(folder: Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli.main, ["report", str(folder)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


def test_the_command_prints_where_the_page_is(tmp_path: Path) -> None:
    believable(tmp_path)
    assert command(tmp_path) == (0, f"{tmp_path / REPORT}\n")
    assert (tmp_path / REPORT).exists()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    assert command(tmp_path) == (1, f"Error: {tmp_path}: holds no run: neither it nor a folder in it has a {HISTORY}\n")
    code, text = command(tmp_path / "nowhere")
    assert code == 2
    assert text.endswith("does not exist.\n")
    (tmp_path / EVENTS).write_text("{}\n")
    code, text = command(tmp_path)
    assert (code, text.count("\n")) == (1, 1)
    assert "history.jsonl: cannot be read" in text


@pytest.mark.parametrize(
    "event",
    [
        {"event": "fault", "id": "f", "kind": "kill", "targets": "everybody"},
        {"event": "fault", "id": "f", "kind": "kill", "targets": 3},
        {"event": "leader", "node": "one", "group": 1},
        {"event": "leader"},
        {"event": "node", "state": "ready"},
        {"event": "run", "nodes": "three"},
        {"event": "run", "probes": 5},
        {"event": "figures", "freeze ms": ["long"]},
        {"event": "verdict", "passed": False, "problems": 3},
    ],
    ids=str,
)
def test_an_event_that_does_not_say_what_it_should_is_told_with_its_file(tmp_path: Path, event: dict[str, Any]) -> None:
    (tmp_path / HISTORY).write_text("")
    (tmp_path / EVENTS).write_text(json.dumps({"t": 1.0, **event}) + "\n")
    with pytest.raises(JournalError, match=r"events\.jsonl: an event lacks what it should say"):
        write_report(tmp_path)
