"""Whatever models, classes, data and files are called: figures, reports and terminals show it and do nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from html import unescape
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from plotly.offline import get_plotlyjs

from analyses.command_line import terminal
from analyses.command_line.cli import main
from analyses.data import load_data
from analyses.pages.columns import PLAIN, meaning_of
from analyses.reproductions.figures import comparison_figure, curve_figures
from analyses.running.catalogue import get_analysis, in_source
from analyses.running.notes import PROBES_READ
from analyses.running.report import Section, key_numbers, write_report
from analyses.running.results import Result
from analyses.running.shown import plain, plain_frame, shown, the_finding
from analyses.running.text import check_seen, visible
from tests.analyses.everything import CLASSES, DATA, LINK, MODEL, results

OWN_WORDS = {
    "cls-attention": "CLS: where it looks among the patches",
    "few-shot-transfer": "its tokens, of each role the mean",
}
READS_CLS = " on cls behind the final norm"
# all results are made once, in one process
pytestmark = pytest.mark.xdist_group("everything")

COMMANDS = sorted(name for name, source in in_source().items() if source.is_command)
TENSORS = ("activation-patching", "attribution-patching", "path-patching", "logit-attribution")


def texts(value: Any) -> Iterator[str]:
    """Every string in a figure."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts(inner)


@cache
def drawn(name: str) -> dict[str, Any]:
    """Every figure of an analysis, by heading."""
    entry, result = get_analysis(name), results()[name]
    more = {heading: draw(result) for heading, draw in entry.figures(result).items()}
    return {"": result.figure(), **more}


def hostile_rows(name: str) -> Result:
    """A result of an analysis that takes tensors, with hostile names where its rows have any."""
    rows = {
        **{"site": LINK, "metric": LINK, "direction": LINK, "group": LINK, "head": None, "layer": 0, "value": 0.5},
        **{"base": 0.0, "sender": LINK, "receiver": LINK, "component": LINK},
    }
    return Result(pd.DataFrame([rows, rows | {"layer": 1}]), {"analysis": name})


@pytest.mark.parametrize("name", COMMANDS)
def test_every_result_says_what_was_read_of_which_model(name: str, tmp_path: Any) -> None:
    """And the report shows it."""
    meta = results()[name].meta
    (told,) = meta["read"].values()
    assert list(meta["read"]) == [MODEL]
    own = {
        "cls-attention": "CLS: where it looks among the patches",
        "few-shot-transfer": "its tokens, of each role the mean",
    }
    assert told.startswith(own[name]) if name in own else told == PROBES_READ or told.endswith(READS_CLS)
    assert meta["models"][MODEL]["reads"] == told
    page = write_report(results()[name], tmp_path / "out").read_text(encoding="utf-8")
    assert "<h2>What was read</h2>" in page


@pytest.mark.parametrize("name", COMMANDS)
def test_every_column_of_a_reports_table_is_explained(name: str) -> None:
    columns = key_numbers(results()[name])[0]
    assert [
        column for column in columns if not meaning_of(column, name) and column.replace(" ", "_") not in PLAIN
    ] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_one_sentence_of_one_model_is_the_title_above_the_question(name: str) -> None:
    result = results()[name]
    if (found := the_finding(result.meta)) is None or get_analysis(name).figure is None:
        return
    several = Result(result.frame, result.meta | {"summary": [found, found]})
    first, asked = (str(one.figure().layout.title.text).split("<br>") for one in (result, several))
    assert " ".join(first).startswith(plain(found)) or first == asked
    assert asked[0] in " ".join(first)


@pytest.mark.parametrize("name", COMMANDS)
def test_no_figure_reads_a_name(name):
    """Nothing of ours is left of a text either: what is a tag, a formula or a template in a figure we wrote."""
    for heading, figure in drawn(name).items():
        for text in texts(json.loads(figure.to_json())):
            assert "<a" not in text, (heading, text)
            assert "%{x} &" not in text, (heading, text)
            assert "$\\" not in text, (heading, text)


def test_the_figures_do_show_the_names():
    everything = " ".join(t for name in COMMANDS for f in drawn(name).values() for t in texts(json.loads(f.to_json())))
    assert plain(MODEL) in everything
    assert plain(CLASSES[0]) in everything or plain(CLASSES[1]) in everything


@pytest.mark.parametrize("name", TENSORS)
def test_no_figure_of_tensors_reads_a_name(name):
    found = list(texts(json.loads(hostile_rows(name).figure().to_json())))
    assert any("&lt;a href" in text for text in found)
    assert not any("<a" in text for text in found)


def test_published_values_beside_ours():
    row = {"step": LINK, "what": LINK, "model": LINK, "by": LINK, "at": 0, "published": 0.5, "value": 0.5, "low": 0.4}
    frame = pd.DataFrame([row | {"high": 0.6, "reading": 0.0, "source": LINK}])
    figures = [comparison_figure(frame), *(figure for _, figure in curve_figures(frame))]
    assert len(figures) == 2
    for figure in figures:
        assert not any("<a" in text for text in texts(json.loads(figure.to_json())))


def test_plain_frames_keep_their_types():
    frame = pd.DataFrame(
        {"x": [1.0], "s": ["<"], "c": pd.Categorical(["<"]), "i": pd.array([None], "Int64"), "n": [None]}
    )
    again = plain_frame(frame)
    assert list(map(str, again.dtypes)) == list(map(str, frame.dtypes))
    assert (again.s.item(), again.c.item(), again.n.item()) == ("&lt;", "&lt;", None)
    once = shown(Result(frame, {"<": {"<": ["<", 1, None]}}))
    assert once.meta == {"&lt;": {"&lt;": ["&lt;", 1, None]}}
    assert shown(once) is once


@pytest.mark.parametrize(
    "text", ["<a href='x'>", "&lt;", "$x$", "%{y}", "a&b;", "\x1b[0m", "鶴 – é", "100 %", "a\u202eb"]
)
def test_plain_text_says_the_same(text):
    assert unescape(plain(text)) == visible(text)


# --- terminals


@pytest.mark.parametrize("letter", ["\x1b", "\x07", "\r", "\n", "\x9b", "\x00", "\u202e", "\u2028", "\ud800", "\x7f"])
def test_what_acts_is_written_out(letter):
    assert visible(f"a{letter}b").isascii()
    assert letter not in visible(f"a{letter}b")
    with pytest.raises(ValueError, match="is text that can be shown"):
        check_seen(f"a{letter}b", "a name")


def test_error_lines_and_tables_write_it_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "quiet", lambda: None)
    for argv in (
        ["hooks", "zoo:\x1b[31mvit"],
        ["run", "cls-\x1b]0;title\x07"],
        ["verify", str(tmp_path / "\x1b[2J")],
        ["reproduce", "\x9b2J"],
        ["\x1b[2J"],
    ):
        assert main(argv) == 2
        said = capsys.readouterr()
        assert not {"\x1b", "\x07", "\x9b"} & set(said.out + said.err)
    evil = "[link=https://evil.example]x[/link] :smile: \x1b[2J"
    terminal.print_table(terminal.console(), [evil], [[evil]], evil)
    out = capsys.readouterr().out
    assert out.count("[link=https://evil.example]x[/link] :smile: \\x1b[2J") == 3
    assert "\x1b" not in out


def test_class_names_that_no_file_can_hold_are_refused_before_work(tmp_path):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    for place in (folder, tmp_path / "tea"):
        place.mkdir()
        Image.new("RGB", (8, 8)).save(place / "a.png")
    with pytest.raises(ValueError, match=r"class names are UTF-8.*caf\\udce9"):
        load_data(f"imagefolder:{tmp_path}")


# --- a page in a browser


PROBE = """<script>
addEventListener("load", () => setTimeout(() => {
  const told = {links: [], texts: [], markup: [], fired: window.fired || 0};
  for (const a of document.querySelectorAll("a")) told.links.push(a.outerHTML);
  for (const t of document.querySelectorAll("svg text, td, th, li, h1, h2")) told.texts.push(t.textContent);
  const markup = "main b, main img:not([src^='data:']), main iframe, svg tspan[style*='bold']";
  for (const b of document.querySelectorAll(markup)) told.markup.push(b.outerHTML);
  document.title = "told";
  const pre = document.createElement("pre");
  pre.id = "told"; pre.textContent = JSON.stringify(told);
  document.body.replaceChildren(pre);
}, 500));
</script>"""


@pytest.fixture(scope="module")
def seen_by_chromium(tmp_path_factory) -> dict[str, Any]:
    """What a browser makes of one report with every figure of every analysis."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium here to open a report in")
    folder = tmp_path_factory.mktemp("report")
    sections = [
        Section(heading or name, LINK, figure) for name in COMMANDS for heading, figure in drawn(name).items()
    ] + [Section(LINK, LINK, hostile_rows(name).figure()) for name in TENSORS]
    result = results()["cls-causality"]
    text = '</script><script>window.fired = 1</script><img src=x onerror="window.fired = 1">\x1b\u202e'
    result = Result(result.frame, result.meta | {"notes": [text, LINK], "command": text, text: text})
    path = write_report(result, folder, title=f"{text} {LINK}", intro=LINK, sections=sections)
    page = path.read_text(encoding="utf-8")
    assert page.count(get_plotlyjs()[:2000]) == 1
    path.write_text(page.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=60000",
        "--timeout=120000",
        "--dump-dom",
    ]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return json.loads(unescape(found[1]))


def test_no_link_leaves_the_page(seen_by_chromium):
    assert seen_by_chromium["links"] == []


def test_nothing_of_a_name_runs_or_is_drawn_as_markup(seen_by_chromium):
    assert seen_by_chromium["fired"] == 0
    # what is bold of ours holds a name as it stands, tags and all
    assert [drawn for drawn in seen_by_chromium["markup"] if ">bold<" in drawn or "tspan" not in drawn] == []


def test_the_page_shows_the_names_as_they_are(seen_by_chromium):
    texts = seen_by_chromium["texts"]
    assert sum(MODEL in text for text in texts) > 20
    assert any(name in text for text in texts for name in CLASSES)
    assert any(DATA in text for text in texts)
    assert not any("&lt;" in text or "&#36;" in text for text in texts)
