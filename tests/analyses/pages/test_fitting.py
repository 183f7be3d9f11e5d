"""A figure wider than its window is drawn smaller, and scrolls sideways only where its letters could not be read."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from analyses.pages.fitting import FITTING

CHROMIUM = shutil.which("chromium")
BOX = '<div class="drawn" style="width: {width}px"><div>{figure}</div></div>'
FIGURE = '<div class="js-plotly-plot" style="width: 1000px; height: 300px"></div>'
WIDTHS = {1200: "hidden", 1000: "hidden", 700: "hidden", 600: "hidden", 500: "auto"}


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_figure_that_fits_has_no_bar_under_it(tmp_path: Path) -> None:
    boxes = "".join(BOX.format(width=width, figure=FIGURE) for width in WIDTHS)
    told = "[...document.querySelectorAll('.drawn')].map((box) => getComputedStyle(box).overflowX)"
    said = f"addEventListener('load', () => {{ document.title = JSON.stringify({told}); }});"
    page = tmp_path / "page.html"
    head = "<!doctype html><title></title><style>.drawn { overflow-x: auto }</style>"
    page.write_text(f"{head}{boxes}<script>{FITTING}{said}</script>", encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [f"--user-data-dir={tmp_path / 'browser'}", "--window-size=1280,900", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    assert json.loads(title) == list(WIDTHS.values())
