"""Every analysis at its smallest settings on a tiny model of every family: what runs, and what is refused and why.

`python -m tests.matrix` writes the table into docs/families.md; `tests/test_matrix.py` checks that it is what happens.
"""

from __future__ import annotations

import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import ViTImageProcessorPil

from analyses.data import ImageData, as_data, load_data
from analyses.questions.patching.paths import Receiver
from analyses.running.catalogue import registered_analyses
from hooked_vit import HookedViT, architectures
from tests.tiny import CLASSES, IMAGE, LOADED, RELATIVES, make_hf, pixels, tiny

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
START, END = "<!-- written by tests/matrix.py: from here -->", "<!-- to here -->"
RUNS = "runs"
N_IMAGES = 15
# what sets a graph apart within its family: patches averaged without a norm, gated neurons, norms behind the branches,
# norms inside them beside rotary positions, a probe that reads CLS too
EXTRA = ("clip-classifier", "dinov2-swiglu", "timm-rpn", "timm-rpn-cls", "timm-eva02-inner", "timm-pe-core")
SMALL: dict[str, Any] = {
    **dict.fromkeys(("seeds", "random_models", "permutations", "epochs", "shots", "min_images", "queries"), 1),
    **dict.fromkeys(("ways", "episodes", "draws", "n_shuffles", "steps", "points", "bands"), 2),
    **{"n_permutations": 19, "permuted_heads": 0, "lens_images": 24, "learning_curve": False, "calibration": 8},
    **{
        "max_pairs": 4,
        "batch_size": N_IMAGES,
        "rule": "any",
        "parts": ("class-projection",),
        "receiver": Receiver("logits"),
        "layer": 0,
        "dims": 1,
        "exact": 4,
        "sizes": (1, 2),
    },
}
# they learn from some pairs and are measured on others
LEARNING = ("aligned-subspace", "circuit-discovery")


def variants() -> tuple[str, ...]:
    """Of every family one model with a head and one without, where it has both, and what else is another graph.

    A family that is another one's graph under other names is asked once.
    """
    kinds: dict[tuple[str, bool], str] = {}
    for name in LOADED:
        cfg = tiny(name)[1].cfg
        if cfg.n_channels == 3 and cfg.image_size == (IMAGE, IMAGE):
            kinds.setdefault((cfg.architecture, cfg.is_feature_model and name not in RELATIVES), name)
    return tuple(sorted({*kinds.values(), *EXTRA}, key=LOADED.index))


@cache
def images(split: str, n: int) -> ImageData:
    """Scenes of at most four objects with their masks, under labels that every tiny head has."""
    (batch,) = load_data(f"scenes:{split}", n=4 * n).batches(4 * n, extra=["mask", "pair", "count", "removed"])
    few = [i for i, count in enumerate(batch.extra["count"]) if count < CLASSES][:n]
    columns = {name: [column[i] for i in few] for name, column in batch.extra.items()}
    rows = {"image": [batch.images[i] for i in few], "label": [i % CLASSES for i in range(n)], **columns}
    return as_data(datasets.Dataset.from_dict(rows))


@torch.no_grad()
def counting(model: HookedViT) -> HookedViT:
    """A copy with a head that counts the objects of these few images right: it passes through all of them."""
    model, (batch,) = model.shared_copy(), images("test", N_IMAGES).batches(N_IMAGES, extra=["pair", "count"])
    counts = torch.tensor([*batch.extra["count"], *(n - 1 for n in batch.extra["count"])]).double()
    pixels = model.preprocess([*batch.images, *batch.extra["pair"]])
    pooled = model.run_with_cache(pixels, names_filter="hook_pooled")[1]["hook_pooled"].double()
    fit = torch.linalg.lstsq(torch.cat([pooled, torch.ones(len(pooled), 1)], dim=1), counts, driver="gelsd").solution
    k = torch.arange(CLASSES).double()
    # the nearest count wins: -(estimate - k)^2 without the part that all counts share
    weight, bias = 2 * k[:, None] * fit[:-1], 2 * k * fit[-1] - k**2
    model.set_head_(weight.float(), bias.float(), tuple(map(str, range(CLASSES))))
    return model


def outcome(analysis: str, model: HookedViT) -> str:
    """RUNS, or what the analysis says when it refuses this model; anything but a refusal is raised."""
    run = registered_analyses()[analysis].run
    takes = inspect.signature(run).parameters
    options = {name: value for name, value in SMALL.items() if name in takes}
    options |= {"fit_data": images("train", 30)} if "fit_data" in takes else {}
    if "models" in takes:
        counts = analysis == "counting" and model.cfg.outputs == "classes" and not model.cfg.is_feature_model
        asked: tuple[Any, ...] = ({"model": counting(model) if counts else model}, images("test", N_IMAGES))
    else:
        n = 4 if analysis in LEARNING else 1
        asked = (model, *pixels(model, n=2 * n).split(n)) if "corrupt" in takes else (model, pixels(model, n=2))
        if analysis in LEARNING:
            # by default the classes are the predicted ones, and a random model may give all images the same
            logits = model(asked[1])
            answers, other = logits.argmax(dim=-1), (logits.argmax(dim=-1) + 1) % logits.shape[-1]
            options |= {"targets": other} if "targets" in takes else {"classes": (answers, other)}
    try:
        result = run(*asked, **options)
    except ValueError as refusal:
        return re.sub(rf"\b{model.cfg.hf_class}\b", "the model", str(refusal))
    # which tokens were read, through what: of every analysis, on a model of every family
    told = [*result.meta["read"].values()]
    assert len(told) == 1, told
    assert any(word in told[0] for word in ("cls", "patches", "tokens")), told
    fitted = any(one.get("head_fitted") for one in result.meta.get("models", {}).values() if isinstance(one, dict))
    assert not fitted or told[0].startswith("a ridge head"), told
    return RUNS


def row(name: str) -> dict[str, str]:
    """The outcome of every analysis on one variant."""
    processor = ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
    model = HookedViT.from_hf(make_hf(name), processor=processor)
    return {analysis: outcome(analysis, model) for analysis in registered_analyses()}


def table(rows: dict[str, dict[str, str]]) -> str:
    """The rows as Markdown: a cross-reference where an analysis refuses, and the reasons below."""
    analyses = [*registered_analyses()]
    reasons = list(dict.fromkeys(told for cells in rows.values() for told in cells.values() if told != RUNS))
    lines = [f"| family | class | {' | '.join(analyses)} |", f"|---|---{'|:-:' * len(analyses)}|"]
    for name, cells in rows.items():
        cfg = tiny(name)[1].cfg
        marks = ["runs" if cells[a] == RUNS else f"[{reasons.index(cells[a]) + 1}]" for a in analyses]
        lines.append(f"| {cfg.architecture} | `{cfg.hf_class}` ({name}) | {' | '.join(marks)} |")
    return "\n".join([*lines, "", *(f"{i}. refused: {reason}" for i, reason in enumerate(reasons, 1))])


def read() -> dict[str, dict[str, str]]:
    """The table as the page has it."""
    text = PAGE.read_text(encoding="utf-8").partition(START)[2].partition(END)[0]
    head, _, *body = (line for line in text.splitlines() if line.startswith("|"))
    reasons = dict(re.findall(r"^(\d+)\. refused: (.*)$", text, flags=re.MULTILINE))

    def cells(line: str) -> list[str]:
        return [cell.strip() for cell in line.strip("|").split("|")]

    analyses, found = cells(head)[2:], {}
    for line in body:
        _, hf_class, *marks = cells(line)
        told = [reasons[mark.strip("[]")] if mark.startswith("[") else mark for mark in marks]
        found[hf_class.partition("(")[2].rstrip(")")] = dict(zip(analyses, told, strict=True))
    return found


def main() -> None:
    """Write the table into the page."""
    torch.set_num_threads(1)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    written = table({name: row(name) for name in variants()})
    PAGE.write_text(f"{before}{START}\n{written}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def families() -> set[str]:
    """The families in the table."""
    return {tiny(name)[1].cfg.architecture for name in variants()} & set(architectures.registered())


if __name__ == "__main__":
    main()
