"""The report is one file that stands alone, says what the result says, and lets nothing in."""

from __future__ import annotations

import re
import shutil
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pandas as pd
import plotly.graph_objects as go
import pytest
from plotly.offline import get_plotlyjs

from analyses.drawing.panels import panels
from analyses.running.registry import analysis
from analyses.running.report import Section, key_numbers, write_report
from analyses.running.results import Result
from analyses.running.shown import SMALL_LINE, TOP, drawn_plain, small

EVIL = "</script><script>alert('x')</script><b>&"


@pytest.fixture
def drawn(own_registry):
    """A result of a registered analysis that has a figure."""

    def draw(result: Result) -> go.Figure:
        return go.Figure(go.Scatter(x=[0, 1], y=[0.5, 1.0], name=EVIL), {"title": {"text": EVIL}})

    @analysis(figure=draw)
    def drawn_for_the_report(models: object, data: object) -> Result:
        """How does it look?"""
        frame = pd.DataFrame({"model": ["a", EVIL], "layer": [0, 11], "best_value": [0.96, 1.0]})
        meta = {
            "summary": ["a: it looks `fine`.", EVIL],
            "notes": [EVIL],
            "models": {EVIL: {"class": EVIL, "n_layers": 12, "unused": ""}},
            "data": {"name": "scenes:test", "n": 10, "skipped": []},
            "seeds": [0, 1],
            EVIL: EVIL,
            "deep": [{"x": EVIL}],
            "long": "word " * 200,
            "command": f"hooked-vit {EVIL}",
        }
        return Result(frame, meta)

    return drawn_for_the_report({"a": SimpleNamespace(run_with_cache=None)}, None)


class Page(HTMLParser):
    """Tags must close in the order they opened; text outside scripts and styles is kept."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.scripts = 0
        self.text = ""
        self.urls: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.urls += [value for name, value in attrs if name in ("src", "href", "action", "data")]
        self.scripts += tag == "script"
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def test_one_file_without_network(drawn, tmp_path):
    section = Section("Closer", "Its `axis`.\n\nAnd more.", go.Figure(go.Bar(y=[1])))
    path = write_report(drawn, tmp_path / "new" / "out", title="How?", intro="Text.", sections=[section])
    assert {p.name for p in path.parent.iterdir()} == {"report.html", "result.parquet", "result.json"}
    source = path.read_text(encoding="utf-8")
    assert source.count(get_plotlyjs()[:2000]) == 1
    page = Page(source)
    assert page.urls == []
    assert "default-src 'none'" in source
    assert len(re.findall(r'"modeBarButtonsToRemove": ?\[[^]]*"sendChartToCloud"', source)) == 2
    assert source.count("Plotly.newPlot") - get_plotlyjs().count("Plotly.newPlot") == 2


def test_it_says_what_the_result_says(drawn, tmp_path):
    path = write_report(drawn, tmp_path, title="How does it look?", intro="First `code`.\n\nSecond.")
    source = path.read_text(encoding="utf-8")
    text = " ".join(Page(source).text.split())
    for said in (
        *("hooked-vit · drawn-for-the-report · scenes:test", "How does it look?", "a: it looks fine.", "First code."),
        *("best value", "0.960", "1.000", "To keep in mind", "n layers", "name scenes:test, n 10", "torch"),
        "All 2 measurements are in result.parquet",
    ):
        assert said in text
    assert "unused" not in text
    assert "<code>fine</code>" in source
    assert text.index("it looks fine") < text.index("First") < text.index("Key numbers") < text.index("What ran")


def test_nothing_a_name_says_becomes_markup(drawn, tmp_path):
    plain = Page(write_report(Result(drawn.frame[["layer"]], {}), tmp_path / "plain").read_text(encoding="utf-8"))
    path = write_report(drawn, tmp_path, title=EVIL, intro=EVIL, sections=[Section(EVIL, EVIL)])
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert page.scripts == plain.scripts + 1  # what draws the figure
    assert EVIL not in source
    assert page.text.count(EVIL) >= 10


def test_an_analysis_without_a_figure(tmp_path):
    path = write_report(Result(pd.DataFrame({"x": [1]}), {}), tmp_path)
    assert "Key numbers" in Page(path.read_text(encoding="utf-8")).text


def test_where_drawing_fails_the_numbers_are_saved_without_a_page(drawn, tmp_path, monkeypatch):
    def broken(_=None):
        raise KeyError("layer")

    write_report(drawn, tmp_path / "out")
    with pytest.raises(KeyError):
        write_report(Result(drawn.frame.head(1), drawn.meta), tmp_path / "out", sections=broken)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"result.parquet", "result.json"}
    assert len(Result.load(tmp_path / "out").frame) == 1
    monkeypatch.setattr(Result, "figure", broken)
    with pytest.raises(KeyError):
        write_report(drawn, tmp_path / "out")
    assert len(Result.load(tmp_path / "out").frame) == 2
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is not one"):
        write_report(drawn, tmp_path / "file")


def test_key_numbers_read_well():
    frame = pd.DataFrame({"x": range(5)})
    table = [
        {"model": "a", "accuracy": 1.0, "used_from": 5.0, "n": 12000, "p": 0.00002, "fitted": True, "none": None},
        {"model": "b", "accuracy": 0.5, "used_from": None, "n": 3, "p": 0.5, "fitted": False, "none": None},
    ]
    columns, rows, remark = key_numbers(Result(frame, {"table": table}))
    assert columns == ["model", "accuracy", "used from", "n", "p", "fitted", "none"]
    assert rows[0] == ["a", "1.000", "5", "12000", "2e-05", "yes", "–"]
    assert rows[1] == ["b", "0.500", "–", "3", "0.500", "no", "–"]
    assert remark == ""


def test_key_numbers_without_a_table_are_the_first_rows():
    frame = pd.DataFrame({"layer": pd.array([0, None, 2], "Int64"), "value": [0.25, float("nan"), 1.0]})
    columns, rows, remark = key_numbers(Result(frame, {}), limit=2)
    assert (columns, rows) == (["layer", "value"], [["0", "0.250"], ["–", "–"]])
    assert remark == "The first 2 of 3 rows; all are in result.parquet."


@pytest.mark.skipif(not (shutil.which("chromium") or shutil.which("google-chrome")), reason="a browser draws it")
def test_a_figure_becomes_a_file(drawn, tmp_path):
    page = drawn.savefig(tmp_path / "f.SVG")
    assert page.read_text("utf-8").startswith("<svg")
    assert "alert" in page.read_text("utf-8")
    assert "<script" not in page.read_text("utf-8")
    assert drawn.savefig(str(tmp_path / "f.pdf")).read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match="pdf, svg, png; got 'f.jpg'"):
        drawn.savefig(tmp_path / "f.jpg")


def test_without_the_extra_it_is_named(drawn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(ImportError, match=r"hooked-vit\[export\]"):
        drawn.savefig(tmp_path / "f.pdf")


def test_stress_and_numbers_are_set_as_such(tmp_path):
    """A number is never broken; stars are stress in prose, and nothing else: no product, pattern, bullet or code."""
    frame = pd.DataFrame({"model": ["a"], "dead": [0.651]})
    intro = "The *total* effect, *loss recovered*; 2 * 3 * 4, *.png *.jpg, a*b*c, `x = *y*`."
    source = write_report(Result(frame, {}), tmp_path, intro=intro).read_text(encoding="utf-8")
    assert "white-space: nowrap" in re.search(r"\.number {[^}]*}", source).group()
    assert "overflow-wrap: break-word" in re.search(r"\.scroll td {[^}]*}", source).group()
    assert re.findall("<em>(.*?)</em>", source) == ["total", "loss recovered"]
    assert "2 * 3 * 4, *.png *.jpg, a*b*c, <code>x = *y*</code>." in source


def test_the_finding_stands_above_the_question_and_the_figure_grows_by_its_lines(own_registry):
    """Where there is one model and one sentence; the names in it are text."""

    def draw(result: Result) -> go.Figure:
        return panels([str(name) for name in result.meta["models"]], "How many?", "Bars: counts", y="n")

    @analysis(figure=draw)
    def finding_for_a_test(models: object, data: object) -> Result:
        """How many?"""
        return Result(pd.DataFrame({"model": ["a"], "n": [3]}), {"models": {"a": {}}, "summary": ["a <b>: `three`."]})

    result = finding_for_a_test({"a": SimpleNamespace(run_with_cache=None)}, None)
    result.meta["small"] = []
    found, plainly = result.figure(), draw(result)
    assert found.layout.title.text == "<br>".join(["a &lt;b&gt;: three.", small("How many?"), small("Bars: counts")])
    more = found.layout.height - plainly.layout.height
    assert more == found.layout.margin.t - plainly.layout.margin.t > 0
    below, above = (fig.layout.legend.y * fig.layout.height for fig in (found, plainly))
    assert below == pytest.approx(above)
    for meta in ({"summary": ["a: x.", "b: y."]}, {"models": {"a": {}, "b": {}}}, {"summary": ["It is. So it is."]}):
        assert Result(result.frame, result.meta | meta).figure().layout.title.text.startswith("How many?<br>")
    assert Result(result.frame, result.meta | {"summary": ["word " * 90]}).figure().layout.title.text[:9] == "How many?"


def test_what_columns_hold_stands_over_them_and_below_the_table(tmp_path):
    result = Result(pd.DataFrame({"model": ["a"], "used_from": [3], "mine": [0]}), {})
    page = write_report(result, tmp_path).read_text(encoding="utf-8")
    assert '<th class="number" title="first layer from which exchanging CLS' in page
    assert "used from: first layer from which exchanging CLS costs more than five points" in Page(page).text
    assert "mine:" not in Page(page).text


def test_what_is_long_about_a_model_stands_below_the_table_of_models(tmp_path):
    """Where it would make a row as high as a page, out of sight on the right."""
    models = {name: {"class": "ViT", "processor": {"resize": [f"{name} word"] * 60}} for name in ("a", "b")}
    source = write_report(Result(pd.DataFrame({"x": [1]}), {"models": models}), tmp_path).read_text(encoding="utf-8")
    table, settings = source.split("<h3>Settings</h3>")
    assert "ViT" in table
    assert "word" not in table.rpartition("What ran")[2]
    assert settings.count("a word") == settings.count("b word") == 60


@pytest.mark.parametrize("sentences", [1, 2, 5])
def test_a_title_that_grows_ends_above_what_is_drawn(sentences):
    """Also where a figure leaves its place to plotly, which puts its middle into the middle of the room."""
    told = Result(pd.DataFrame(), {"small": ["Small: few images."] * sentences})
    asked = go.Figure(layout={"title": f"Why?<br>{small('how')}", "height": 440})
    layout = drawn_plain(lambda result: asked)(told).layout
    lines = layout.title.text.count("<br>") + 1
    top = (1 - layout.title.y) * layout.height
    assert (layout.title.yanchor, layout.title.yref) == ("top", "container")
    assert 0 < top < layout.margin.t - lines * SMALL_LINE
    assert layout.height - layout.margin.t == pytest.approx(440 - TOP)
