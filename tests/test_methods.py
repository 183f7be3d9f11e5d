"""`docs/methods.md` is complete: what an analysis measures, after whom, and against what."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from analyses.questions.class_space.attention_knockouts.knockout import VARIANTS
from analyses.running.catalogue import in_source

PAGE = (Path(__file__).parents[1] / "docs" / "methods.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (§\d+ [^\n]+)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))


def about(analysis: str) -> list[str]:
    """The sections whose last line names an analysis."""
    last = {title: body.rstrip().rpartition("\n")[2] for title, body in SECTIONS.items()}
    return [title for title, line in last.items() if line.startswith("*Anal") and f"`{analysis}`" in line]


@pytest.mark.parametrize("analysis", sorted(in_source()))
def test_every_analysis_has_a_section_with_its_source_and_its_control(analysis: str) -> None:
    titles = about(analysis)
    assert titles, f"no section of docs/methods.md ends with a line that names {analysis}"
    for title in titles:
        line = SECTIONS[title].rstrip().rpartition("\n")[2]
        assert re.search(r"\*Source\* \S", line), title
        assert re.search(r"\*Control\* \S", line), title


def test_no_section_names_an_analysis_there_is_not() -> None:
    lines = [line for line in PAGE.splitlines() if re.match(r"\*Analys[ei]s\*", line)]
    named = {name for line in lines for name in re.findall(r"`([a-z]+(?:-[a-z]+)+)`", line.partition("*Source*")[0])}
    assert named <= set(in_source()), named - set(in_source())


def test_sections_are_in_order_and_cited_ones_are_there() -> None:
    numbers = [int(re.match(r"§(\d+)", title).group(1)) for title in SECTIONS]  # type: ignore[union-attr]
    assert numbers == sorted(set(numbers))
    root = Path(__file__).parents[1]
    files = [*root.glob("analyses/**/*.py"), *root.glob("analyses/**/*.toml"), *root.glob("interventions/**/*.py")]
    cited = {
        int(number)
        for file in files
        for number in re.findall(r"methods (?:§|section )(\d+)", file.read_text(encoding="utf-8"))
    }
    assert cited <= set(numbers), cited - set(numbers)


def test_all_six_knockouts_are_told_apart() -> None:
    body = next(body for title, body in SECTIONS.items() if title.startswith("§12 "))
    assert all(f"| `{variant}` |" in body for variant in VARIANTS)
    assert len(VARIANTS) == 6


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("§3 ", "use_mean_pooling=False"),
        ("§4 ", "KL(model ‖ reading)"),
        ("§26 ", "½ Āᵇ + ½ I"),
        ("§32 ", "(D_patched − D_base) / (D_donor − D_base)"),
        ("§33 ", "x_r + (s_donor − s_base)"),
        ("§34 ", "(term · (γ ⊙ E_y)) / σ"),
        ("§35 ", "gap = mean(d − f − e)"),
        ("§37 ", "five points"),
    ],
)
def test_formulas_stand_where_they_are_looked_for(section: str, said: str) -> None:
    (body,) = [body for title, body in SECTIONS.items() if title.startswith(section)]
    assert said in body
