"""Every value a user holds says what it is in one line and in a small table, whatever names it holds."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from analyses.activations.store import Store, store_activations
from analyses.data import load_data
from analyses.data.batches import Batch
from analyses.data.imagedata import ImageData
from analyses.probes.fitting import fit_probes
from analyses.probes.ridge import GramRidge
from analyses.running.results import Result
from hooked_vit import published, zoo
from hooked_vit.config.showing import LINE, ROWS, Displayed, counted
from interventions import Circuit, Intervention, Sae, apply, collect_stats, shuffle_cls, steer
from tests.tiny import pixels, tiny

EVIL = "<img src=x onerror=alert(1)>&amp;\x1b[2J\n\u202e" + "long" * 60


class Tags(HTMLParser):
    """The tags of a fragment."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One of each kind, with names from outside that do something where they are not shown as text."""
    model = tiny("vit")[1].shared_copy()
    model.cfg = model.cfg.replace(name=EVIL, class_names=(EVIL,) * model.cfg.n_classes)
    data = load_data("scenes:test", n=20)
    renamed = load_data("scenes:test", n=20)
    renamed.name, renamed.class_names, renamed.drawn = EVIL, [EVIL] * 10, EVIL
    x = pixels(model)
    logits, cache = model.run_with_cache(x)
    with apply(model, *(shuffle_cls(layer=i) for i in (0, 1))) as run:
        model(x)
    with_head = zoo.load("vit")
    probes = fit_probes(with_head, data, roles=("cls",), layers=(0,))
    ridge = GramRidge(3)
    ridge.update({EVIL: torch.randn(9, 4)}, torch.arange(9) % 3)
    folder = tmp_path_factory.mktemp("kept") / "<b>store"
    store_activations(with_head, data, ("resid_post",), ("cls",), to=folder)
    about = {"name": EVIL, "n_layers": 2, "n_heads": 4, "weights": "w"}
    frame = pd.DataFrame({EVIL: [EVIL] * 40, "accuracy": [0.5] * 40})
    return {
        "result": Result(frame, {"analysis": EVIL, "summary": [EVIL]}),
        "model": model,
        "config": model.cfg,
        "tokens": model.tokens,
        "cache": cache,
        "probes": probes,
        "probe": probes["cls", 0],
        "evaluation": probes.evaluate(with_head, data, by_heart=True),
        "target": probes.target,
        "ridge": ridge.fit()[EVIL],
        "data": renamed,
        "batch": Batch([Image.new("RGB", (9, 9))], torch.tensor([3]), torch.tensor([0]), {EVIL: [1]}),
        "run": run,
        "intervention": shuffle_cls(layer=0),
        "interventions": shuffle_cls(layer=0) + steer(layer=1, tokens="cls", vector=torch.ones(32)),
        "circuit": Circuit((("embed", "head 0.0 q"),), about),
        "dictionary": Sae(torch.eye(2), torch.zeros(2), torch.eye(2), torch.zeros(2), site=EVIL, tokens=EVIL),
        "stats": collect_stats(with_head, pixels(with_head, n=4), [("resid_post", 0)]),
        "store": Store(folder),
        "published": published.get(published.names()[0]),
    }


def kinds(of: type = Displayed) -> Iterator[type]:
    for kind in of.__subclasses__():
        yield kind
        yield from kinds(kind)


def test_every_kind_is_here(values: dict[str, Any]) -> None:
    held = {type(value) for value in values.values()}
    ours = {
        kind for kind in kinds() if kind.__module__.partition(".")[0] in ("hooked_vit", "interventions", "analyses")
    }
    assert {kind.__name__ for kind in ours - held} <= {"Shown"}  # what a figure is drawn from, in nobody's hands
    assert len(held) >= 18


def test_one_line(values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, Intervention):  # the call that makes it again, whole
            continue
        line = repr(value)
        assert len(line) <= LINE, (name, line)
        assert line.isprintable(), (name, line)
        assert " at 0x" not in line, (name, line)
        assert str(value) == line, name


def test_a_small_table_of_text(values: dict[str, Any]) -> None:
    for name, value in values.items():
        html = value._repr_html_()
        assert Tags(html).seen <= {"p", "b", "table", "thead", "tbody", "tr", "th", "td"}, (name, html)
        assert "<tr" in html, name
        assert html.count("<tr") <= ROWS + 1, name
        assert not {"\x1b", "\u202e"} & set(html), name


def test_tab_completion_is_what_there_is_to_use(values: dict[str, Any]) -> None:
    for name, value in values.items():
        assert dir(value), name
        assert not [entry for entry in dir(value) if entry.startswith("_")], name
    for room in ("hooked_vit", "hooked_vit.architectures", "hooked_vit.loading.published", "hooked_vit.zoo"):
        assert_public(room)
    for room in ("interventions", "analyses", "analyses.data"):
        assert_public(room)


def assert_public(room: str) -> None:
    package = importlib.import_module(room)
    assert {*package.__all__} <= {*dir(package)}, room
    strange = {entry for entry in dir(package) if entry.startswith("_") or entry in ("Any", "annotations", "Path")}
    assert strange <= {"__version__"}, room


def test_tokens_say_of_which_images_they_are() -> None:
    """A run of larger images is over, and what the model says of its tokens is of the usual ones, by name."""
    model = tiny("vit")[1]
    large = pixels(model, (64, 64))
    _, cache = model.run_with_cache(large)
    assert model.tokens.pixels == model.usual_size == (32, 32)
    assert "pixels=(32, 32)" in repr(model.tokens)
    assert "(32, 32)" in model.tokens._repr_html_()
    assert model.layout_for(large).pixels == cache.tokens("resid_post", 0).pixels == (64, 64)
    assert model.tokens.insert(0, 1).pixels == (32, 32)


def test_data_says_what_it_is_without_being_read() -> None:
    data: ImageData = load_data("scenes:test", n=5)
    assert repr(data) == "<scenes:test: 5 images, 10 classes>"
    assert "5</td>" in data._repr_html_()


def test_a_model_loads_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("vit", "clip"):
        zoo.load(name)
    assert capfd.readouterr() == ("", "")


SEVERAL = (
    "images|groups|pairs|scenes|classes|layers|heads|blocks|features|draws|cells|rows|models|batches|steps|edges|sites|"
    "cases|components|neurons|directions|dimensions|readouts|measurements|parts|tests|registers|seeds|files|results"
)
WORDS = ("split", "self._split", "order", "BUFFER", "told('l0')")
"""What stands in front of such a word and is no count of things."""


def not_counted(source: str) -> Iterator[str]:
    """What texts that are no errors say of several things, whether there are several or one."""
    tree = ast.parse(source)
    errors = {id(node) for raised in ast.walk(tree) if isinstance(raised, ast.Raise) for node in ast.walk(raised)}
    for text in ast.walk(tree):
        if isinstance(text, ast.JoinedStr) and id(text) not in errors:
            for value, after in zip(text.values, text.values[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant):
                    of = re.match(rf" (?!of |and |that |for |two |both )(?:\w+ )?({SEVERAL})\b", str(after.value))
                    if of and value.format_spec is None and ast.unparse(value.value) not in WORDS:
                        yield f"{value.lineno}: {{{ast.unparse(value.value)}}}{of.group()}"


@pytest.mark.parametrize("room", ["analyses", "hooked_vit", "interventions"])
def test_one_thing_is_not_called_several(room: str) -> None:
    """`counted` says "1 group" and "2 groups"."""
    found = {str(path): [*not_counted(path.read_text("utf-8"))] for path in sorted(Path(room).rglob("*.py"))}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_a_text_that_calls_one_thing_several_is_found() -> None:
    assert [*not_counted('f"{n} images"')] == ["1: {n} images"]
    assert [*not_counted("f'{counted(n, 1)} of {x:.1%} of images'")] == []
    assert counted(1, "class", "classes") == "1 class"
    assert counted(0, "class", "classes") == "0 classes"
