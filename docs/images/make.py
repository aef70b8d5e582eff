"""Make the pictures of README again.

    .venv/bin/python docs/images/make.py FOLDER

FOLDER is that of a chaos run: docs/chaos.md says which.
Needs Chromium and its driver (`make browser`). Starts a local cluster for the picture of `raftkv-admin cluster status`.
"""
# ruff: noqa: INP001

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

import raftkv
from raftkv.testing import LocalCluster

HERE = Path(__file__).resolve().parent
COMMAND = ["raftkv-admin", "cluster", "status"]


def report(folder: Path) -> None:
    """The upper part of the report's page, down to the chart of how long writes were not available."""
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    size = {"width": 1200, "deviceScaleFactor": 1, "mobile": False}
    try:
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**size, "height": 900})
        driver.get((folder / "report.html").absolute().as_uri())
        WebDriverWait(driver, 60).until(
            lambda _: driver.execute_script("return document.documentElement.dataset.charts === 'drawn'")
        )
        end = driver.execute_script(
            "return document.getElementById('chart-gaps').closest('section').getBoundingClientRect().bottom"
        )
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {**size, "height": int(end) + 8})
        shot = Image.open(BytesIO(driver.get_screenshot_as_png()))
        shot.convert("RGB").quantize(128).save(HERE / "chaos-report.png", optimize=True)
    finally:
        driver.quit()


def cluster_status() -> None:
    """What the command prints of a new cluster with a thousand records."""
    with LocalCluster(nodes=3, groups=2, port=8801) as cluster:
        with raftkv.Client(cluster.endpoints) as kv:
            for number in range(1000):
                kv.put(f"user:{number}", b"x" * 100)
        program = [str(Path(sys.executable).parent / COMMAND[0]), "--endpoints", cluster.endpoints]
        shown = subprocess.run([*program, *COMMAND[1:]], capture_output=True, text=True, check=True).stdout
    console = Console(record=True, width=80, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(f"$ {' '.join(COMMAND)}", highlight=False, style="bold")
    console.print(Text(shown))
    picture = console.export_svg(title="raftkv-admin cluster status", theme=MONOKAI, unique_id="status")
    # Without fonts of a network: the reader's own fixed-width one.
    (HERE / "cluster-status.svg").write_text(re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL))


if __name__ == "__main__":
    report(Path(sys.argv[1]))
    cluster_status()
