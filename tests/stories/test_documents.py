"""All code on our pages: Python is run, commands are read by the parser they are for, and what is not run says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stories import fresh
from tests.stories.documents import PAGES, ROOT, blocks, commands, missing, python, texts, wrong

pytestmark = pytest.mark.xdist_group("fresh")

# What a page's code finds (a function of tests.stories.pages), and what has to hold once it has run.
BEFORE = {"README.md": "readme", "docs/dictionaries.md": "dictionaries"}
AFTER = {
    "README.md": """
        import numpy as np
        import transformers
        from hooked_vit import zoo

        data = load_data("scenes:test", n=100)
        in_one, in_many = (cls_norm({"vit": zoo.load("vit")}, data, batch_size=b).frame for b in (100, 7))
        assert len(in_one) == len(in_many) == 2 * 8
        numbers = ["value", "low", "high", "n"]
        assert np.allclose(in_one[numbers], in_many[numbers], rtol=1e-5)
        assert (in_one.n == 100).all()
        assert len(result.frame) == 1 + 2 * mine.cfg.n_layers
        assert len(cls_norm({"vit": zoo.load("vit")}, data).figure().data) >= 2
        with apply(model, mean_cls(layer=3, mean=torch.zeros(96))) as run:
            model(pixels)
        assert run.fired == {"blocks.3.hook_resid_post": 1}

        class MyViTForImageClassification(transformers.ViTForImageClassification):
            pass

        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        theirs = MyViTForImageClassification(transformers.ViTConfig(**sizes, image_size=32, patch_size=8)).eval()
        x = torch.randn(2, 3, 32, 32)
        mine = HookedViT.from_hf(theirs)
        assert mine.cfg.architecture == "my_vit"
        assert torch.allclose(mine(x), theirs(x).logits, atol=1e-5)
    """,
    "docs/dictionaries.md": """
        assert cache["blocks.8.hook_resid_post.hook_sae_acts"].shape == (2, 37, 64)
        assert (ours.layer, ours.site) == (LAYER, "resid_post")
        with apply(model, splice(ours)) as run:
            model(pixels)
        assert len(run.fired) == 1
    """,
}
# Pages whose code another test runs, because it goes on with what came out.
ELSEWHERE = {
    "docs/coming_from.md": "tests/hooked_vit/promises/test_coming_from.py",
    "docs/families.md": "tests/hooked_vit/loading/test_in_place.py",
}
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
RUN = [name for name in NAMES if python(ROOT / name) and name not in ELSEWHERE]


@pytest.mark.parametrize("name", RUN)
def test_python_runs_as_it_stands(name: str, tmp_path: Path) -> None:
    before = f"from tests.stories import pages\nglobals().update(pages.{BEFORE[name]}())" if name in BEFORE else ""
    fresh.check([before, *python(ROOT / name), _dedented(AFTER.get(name, ""))], tmp_path)


def _dedented(code: str) -> str:
    from textwrap import dedent

    return dedent(code)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_another_test_runs_it_runs_whole(name: str) -> None:
    source = (ROOT / ELSEWHERE[name]).read_text(encoding="utf-8")
    assert "python(PAGE)" in source
    assert Path(name).name in source


@pytest.mark.parametrize(("name", "text"), [pytest.param(*page, id=page[0]) for page in texts()])
def test_commands_exist_with_their_options(name: str, text: str) -> None:
    assert {command: says for command in commands(text) if (says := wrong(command))} == {}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_run_says_why_and_names_what_exists(name: str) -> None:
    found = blocks((ROOT / name).read_text(encoding="utf-8"))
    assert {block.language for block in found} <= {"python", "sh", "json", "text", "toml", "html"}, "say the language"
    for block in found:
        if block.why is not None:
            assert block.language == "python"
            assert len(block.why.split()) >= 4, f"line {block.line}: a reason is a sentence"
            assert missing(block.code) == [], f"line {block.line}"


def test_planted_faults_are_found() -> None:
    assert missing("from analyses import load_data\nload_data('scenes:test', n=3)") == []
    assert missing("from analyses import load_date") == ["analyses has no load_date"]
    assert missing("from interventions import shuffle_cls\nshuffle_cls(layr=3)") == ["shuffle_cls takes no layr"]
    assert missing("from hooked_vit import HookedViT\nHookedViT.from_hub('a')") == ["there is no HookedViT.from_hub"]
    for command in (
        *("hooked-vit run cls-casuality", "hooked-vit run cls-causality --modle zoo:vit", "hooked-vit rnu demo"),
        *("hooked-vit run lenses --seeds 3", "hooked-vit reproduce nobody", "make tests", "python -m analyses.nothing"),
        *("hooked-vit", 'pip install "hooked-vit[exports]"', "curl example.org"),
    ):
        assert wrong(command), command
    fenced = "<!-- not run: no GPU here at all -->\n```python\nx\n```\n```sh\nmake c\n```\n"
    page = f"Run `hooked-vit list` or `make a|b`.\n\n{fenced}"
    assert commands(page) == ["make c", "hooked-vit list", "make a", "make b"]
    assert [block.why for block in blocks(page)] == [" no GPU here at all ", None]
