"""Guarantee: the report of a run can be read in a real browser, with no network, in light and dark, wide and narrow."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from bench import results
from faults.report.writing import write_report
from tests.chaos_runs import FAULTS, PROOFS, believable
from tests.needs import need

CHARTS: Final = ("clients", "nodes", "gaps", "latency", "throughput")
PATIENCE_OF_COMMANDS: Final = 500.0
"""Seconds: a busy machine may take long for a page."""
HOSTILE: Final = "<img src=x onerror=window.hacked=1></script><script>window.hacked=1</script>"
FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


class Reader:
    """Somebody who looks at pages. What the browser complains about or asks a network for is remembered."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, page: Path, *, width: int = 1280, dark: bool = False) -> None:
        self.driver.get("about:blank")
        self.complaints()
        self.requests()
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 700},
        )
        self.prefer("dark" if dark else "light")
        self.driver.get(page.as_uri())

    def prefer(self, scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open_report(self, page: Path, *, width: int = 1280, dark: bool = False) -> None:
        self.open(page, width=width, dark=dark)
        self.wait("document.documentElement.dataset.charts === 'drawn'")

    def ask(self, expression: str) -> Any:
        return self.driver.execute_script(f"return {expression}")

    def wait(self, condition: str) -> None:
        WebDriverWait(self.driver, 60).until(lambda _: self.ask(condition), f"never: {condition}")

    def point_at(self, chart: str, time: float, row: str) -> None:
        """Move the mouse to that moment in the row of that name."""
        x, y = self.driver.execute_script(
            """
            const chart = document.getElementById(`chart-${arguments[0]}`);
            chart.scrollIntoView({ block: "center", behavior: "instant" });
            const { xaxis, yaxis } = chart._fullLayout, place = chart.getBoundingClientRect();
            return [place.left + xaxis._offset + xaxis.l2p(arguments[1]),
                    place.top + yaxis._offset + yaxis.l2p(yaxis.ticktext.indexOf(arguments[2]))];
            """,
            chart,
            time,
            row,
        )
        for step in (9, 0):
            move = {"type": "mouseMoved", "x": round(x) - step, "y": round(y)}
            self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", move)

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self._log("browser") if entry["level"] == "SEVERE"]

    def requests(self) -> list[str]:
        """Addresses that the browser asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self._log("performance")]
        return [one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent"]

    def _log(self, name: str) -> list[dict[str, Any]]:
        """What has come since the last call."""
        return list(self.driver.get_log(name))  # type: ignore[no-untyped-call]

    def text(self, selector: str) -> str:
        return str(self.driver.find_element(By.CSS_SELECTOR, selector).text)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver_binary = shutil.which("chromedriver")
    need(bool(binary and driver_binary), "there is no chromium with chromedriver: make browser")
    options = webdriver.ChromeOptions()
    options.binary_location = str(binary)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # Its path is given, so nothing is looked for or fetched.
    service = Service(str(driver_binary), log_output=subprocess.DEVNULL)
    driver = webdriver.Chrome(options=options, service=service)
    executor: Any = driver.command_executor
    executor.client_config.timeout = PATIENCE_OF_COMMANDS
    try:
        yield Reader(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(believable(tmp_path_factory.mktemp("passed")))


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(believable(tmp_path_factory.mktemp("failed"), violated=True, key=HOSTILE))


def marks(reader: Reader, chart: str) -> int:
    """How much is drawn in a chart: marks, lines and bars, and the pixels of a canvas that have a colour."""
    return int(
        reader.driver.execute_script(
            """
            const chart = document.getElementById(`chart-${arguments[0]}`);
            let found = [...chart.querySelectorAll(".scatterlayer .point, .js-line, .barlayer .point path")]
              .filter((one) => one.getBoundingClientRect().width > 0).length;
            for (const canvas of chart.querySelectorAll("canvas")) {
              if (!canvas.width || !canvas.height) continue;
              const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
              copy.drawImage(canvas, 0, 0);
              const pixels = copy.getImageData(0, 0, canvas.width, canvas.height).data;
              for (let at = 3; at < pixels.length; at += 4) found += pixels[at] > 0;
            }
            return found;
            """,
            chart,
        )
    )


def test_a_run_that_passed_is_shown_with_its_verdict_first_and_all_charts(reader: Reader, passed: Path) -> None:
    reader.open_report(passed)
    assert reader.requests() == [passed.as_uri()]
    assert reader.ask("performance.getEntriesByType('resource').map((one) => one.name)") == []
    assert reader.text(".verdict").startswith("passed")
    bottom = reader.ask("document.querySelector('.verdict').getBoundingClientRect().bottom")
    tops = reader.ask("[...document.querySelectorAll('section')].map((one) => one.getBoundingClientRect().top)")
    assert 0 < bottom < 300
    assert all(bottom < top for top in tops)
    drawn = {chart: marks(reader, chart) for chart in CHARTS}
    assert drawn["clients"] > 500, drawn
    assert all(count > 10 for count in drawn.values()), drawn
    nodes = reader.ask("document.getElementById('chart-nodes').textContent")
    for number, fault in enumerate(FAULTS, 1):
        assert f"#{number} {fault['kind']}" in nodes
        assert f"#{number} {fault['kind']}" in reader.text("#faults")
        assert PROOFS[fault["id"]] in reader.text("#faults")
    assert reader.complaints() == []


def test_a_run_that_failed_tells_the_guilty_keys_story_and_runs_nothing_that_keys_say(
    reader: Reader, failed: Path
) -> None:
    reader.open_report(failed)
    assert reader.text(".verdict").startswith("FAILED")
    assert HOSTILE in reader.text(".verdict")
    assert HOSTILE in reader.text("#stories h3")
    guilty = reader.text("#stories mark")
    assert guilty.startswith("! |")
    assert f"get {HOSTILE}" in guilty
    # Its last get, from near by: gets of other keys are 50 ms away.
    reader.driver.execute_script("Plotly.relayout('chart-clients', {'xaxis.range[0]': 28, 'xaxis.range[1]': 28.3})")
    reader.wait("document.getElementById('chart-throughput').layout.xaxis.range.join() === '28,28.3'")
    reader.point_at("clients", 28.1, "last")
    reader.wait("document.querySelector('#chart-clients .hovertext') !== null")
    told = reader.ask("document.querySelector('#chart-clients .hovertext').textContent")
    assert f"last get {HOSTILE}"[:60] in told.replace("\xa0", " "), "what it is, not what it does"
    assert reader.ask("window.hacked") is None
    assert reader.requests() == [failed.as_uri()]
    assert reader.complaints() == []


def test_a_dark_room_gets_dark_colours_also_while_the_page_is_open(reader: Reader, passed: Path) -> None:
    page = "getComputedStyle(document.body).backgroundColor"
    ink = "document.getElementById('chart-latency').layout.font.color"
    reader.open_report(passed, dark=True)
    dark, dark_ink = reader.ask(page), reader.ask(ink)
    assert brightness(dark) < 60
    reader.prefer("light")
    reader.wait(f"{ink} !== '{dark_ink}'")
    assert brightness(reader.ask(page)) > 200
    reader.wait("document.documentElement.dataset.charts === 'drawn'")
    assert marks(reader, "latency") > 10
    assert reader.complaints() == []


def brightness(colour: str) -> float:
    """Of ``rgb(r, g, b)``."""
    parts = [float(one) for one in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    return sum(parts) / len(parts)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_need_not_scroll_sideways(reader: Reader, passed: Path, failed: Path, dark: bool) -> None:
    for page in (passed, failed):
        reader.open_report(page, width=400, dark=dark)
        assert reader.ask("innerWidth") == 400
        assert reader.ask("document.documentElement.scrollWidth") <= 400
        assert all(marks(reader, chart) > 10 for chart in CHARTS)
        assert reader.complaints() == []


def test_what_is_enlarged_in_one_chart_is_enlarged_in_all(reader: Reader, passed: Path) -> None:
    reader.open_report(passed)
    reader.driver.execute_script("Plotly.relayout('chart-latency', {'xaxis.range[0]': 5, 'xaxis.range[1]': 9})")
    ranges = "[...document.querySelectorAll('.chart')].map((one) => one.layout.xaxis.range.join())"
    reader.wait(f"{ranges}.every((one) => one === '5,9')")
    reader.driver.execute_script("Plotly.relayout('chart-nodes', {'xaxis.autorange': true})")
    reader.wait(f"{ranges}.every((one) => one === '0,30')")
    assert reader.complaints() == []


def test_the_page_above_several_runs_leads_to_each(reader: Reader, tmp_path: Path) -> None:
    believable(tmp_path / "calm sea", faults=False, scenario="calm")
    believable(tmp_path / "storm", violated=True)
    reader.open(write_report(tmp_path), width=400)
    assert reader.text(".verdict").startswith("FAILED")
    assert reader.ask("document.documentElement.scrollWidth") <= 400
    reader.driver.find_element(By.LINK_TEXT, "calm sea").click()
    reader.wait("document.documentElement.dataset.charts === 'drawn'")
    assert reader.text("h1") == "calm"
    assert reader.text(".verdict").startswith("passed")
    assert reader.complaints() == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_report_of_measurements_has_its_pictures_in_it_and_fits_a_phone(
    reader: Reader, tmp_path: Path, dark: bool
) -> None:
    percentiles = [(50.0, 1.0), (90.0, 2.0), (99.0, 5.0)]
    rows = [
        {
            "label": f"{op} workers {workers}", "op": op, "workers": workers, "operations": 1000, "per_second": rate,
            "latency_ms": {"p50": 1.0, "p95": 2.0, "p99": 5.0, "max": 9.0}, "percentiles": percentiles, "errors": {},
            "others": 0.0, "stolen": 0.0,
        }
        for op, rate in (("get", 100_000.0), ("set", 20_000.0)) for workers in (1, 50)
    ]  # fmt: skip
    beside = {"fsync": {"per_second": 1.0, "p50_ms": 1.0, "p99_ms": 1.0}, "echo": {"per_second": 1.0}}
    scenario = {"name": "workers", "what": HOSTILE, "axis": "workers", "beside": beside, "rows": rows}
    results.write(tmp_path, {"format": 1, "machine": {"cores": 2}, "options": {}, "scenarios": [scenario]})
    page = tmp_path / results.PAGE
    reader.open(page, width=400, dark=dark)
    assert reader.requests() == [page.as_uri()]
    assert reader.text(".headline").startswith("GET up to 100,000/s, p99 5.0 ms")
    assert reader.ask("document.documentElement.scrollWidth") <= 400
    assert reader.ask("document.querySelectorAll('svg use').length") > 10
    assert reader.ask("[...document.querySelectorAll('svg')].every((one) => one.getBoundingClientRect().width > 300)")
    inks = "[...document.querySelectorAll('svg text')].map((one) => getComputedStyle(one).fill)"
    paper = reader.ask("getComputedStyle(document.querySelector('svg path')).fill")
    assert (brightness(paper) < 60) is dark
    # Every text stands out from the paper.
    assert all(abs(brightness(ink) - brightness(paper)) > 70 for ink in reader.ask(inks))
    assert reader.ask("window.hacked") is None
    assert reader.complaints() == []
