"""Tokens taken out behind the embedding: the others as if alone, the same number at random, and what counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from analyses import load_data, token_removal
from analyses.data import as_data
from analyses.questions.class_space.measures.projection import project_tokens, token_ranks
from analyses.questions.class_space.token_removal.figure import removal_figure
from analyses.questions.class_space.token_removal.removal import (
    at_tokens,
    measure_removal,
    pooled_rate,
    random_removal,
    run_without,
)
from hooked_vit import HookedViT, TokenLayout
from tests.analyses.inert import inert
from tests.tiny import CLASSES, FAMILIES, IMAGE, make, make_hf, pixels, tiny

SQUASH = ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
FIT = load_data("scenes:train", n=20)
CLASSIFIERS = tuple(name for name in FAMILIES if name != "clip-projection")


def some_patches(n: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2, (n, 16), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_removing_nothing_is_the_baseline_to_the_bit(name: str) -> None:
    _, net = tiny(name)
    x, labels = pixels(net, n=4), torch.arange(4)
    nothing = torch.zeros(4, 16, dtype=torch.bool)
    ending = run_without(net, x, labels, nothing)
    with torch.no_grad():
        logits, kept = net.run_with_cache(x)
        assert torch.equal(ending.pos[1], token_ranks(project_tokens(net, kept["resid_post", 1]), labels))
    assert torch.equal(ending.right, logits.argmax(-1) == labels)
    one = nothing.clone()
    one[0, 3] = True  # the other images keep everything
    shorter = run_without(net, x, labels, one)
    assert torch.equal(shorter.pos[1][1:], ending.pos[1][1:])


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_images_that_keep_different_tokens_are_as_if_each_ran_alone(name: str) -> None:
    net = make(name)
    x, labels, removed = pixels(net, n=4), torch.arange(4), some_patches().bool()
    together = run_without(net, x, labels, removed)
    for image in range(4):
        alone = run_without(net, x[image : image + 1], labels[image : image + 1], removed[image : image + 1])
        assert together.right[image] == alone.right[0]
        here = at_tokens(~removed, together.layout)[image]
        assert torch.equal(
            together.pos[1][image][here], alone.pos[1][0][at_tokens(~removed[image : image + 1], alone.layout)[0]]
        )


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_the_order_of_the_tokens_kept_does_not_matter(name: str) -> None:
    net = make(name)
    x, prefix = pixels(net, n=2), len(net.cfg.prefix)
    kept = [*range(prefix), *(prefix + p for p in (1, 4, 6, 7, 11))]
    mixed = [*range(prefix), *(prefix + p for p in (11, 4, 1, 7, 6))]
    logits, last = [], []
    for places in (kept, mixed):

        def keep(resid: torch.Tensor, hook: object, places: list[int] = places) -> torch.Tensor:
            return net.keep_tokens(resid, torch.tensor(places))

        seen: list[torch.Tensor] = []
        hooks = [
            ("blocks.0.hook_resid_pre", keep),
            ("blocks.1.hook_resid_post", lambda r, hook, seen=seen: seen.append(project_tokens(net, r, net.tokens))),
        ]
        logits.append(net.run_with_hooks(x, fwd_hooks=hooks))
        last.append(dict(zip(places, seen[0].unbind(1), strict=True)))
    assert torch.allclose(logits[0], logits[1], atol=1e-9)
    assert all(torch.allclose(last[0][place], last[1][place], atol=1e-9) for place in kept)


def test_as_many_are_removed_at_random_and_the_same_in_every_batch() -> None:
    removed = some_patches(6).bool()
    index = torch.arange(10, 16)
    drawn = random_removal(removed, 0, index)
    assert torch.equal(drawn.sum(1), removed.sum(1))
    assert torch.equal(random_removal(removed[2:4], 0, index[2:4]), drawn[2:4])
    assert not torch.equal(random_removal(removed, 1, index), drawn)
    often = torch.stack([random_removal(removed, seed, index)[0] for seed in range(300)]).double().mean(0)
    assert (often - removed[0].double().mean()).abs().max() < 0.15  # from all patches alike


def test_patches_are_found_behind_a_removal() -> None:
    layout = TokenLayout.native(("cls",), (1, 4))
    kept = layout.keep(torch.tensor([[0, 2, 4], [0, 1, -1]]))
    wanted = torch.tensor([[True, True, False, True], [True, False, False, True]])
    assert at_tokens(wanted, kept).tolist() == [[False, False, True] if i == -1 else row for i, row in enumerate(
        [[False, True, True], [False, True, False]]
    )]  # fmt: skip


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_rates_agree_with_a_plain_reference(name: str) -> None:
    """Each image by itself: its tokens deleted from the stream, blocks run, every token ranked."""
    net = make(name)
    x, labels, patches = pixels(net, n=5), torch.arange(5) % CLASSES, some_patches(5)
    patches[4] = 0  # no class tokens: skipped
    prefix = len(net.cfg.prefix)
    rows = measure_removal(net, [(x, labels, patches, torch.arange(5))], draws=1)
    for kept, label in (("class", 1), ("context", 0)):
        rates: dict[str, list[float]] = {"clean": [], "removed": []}
        pooled: dict[str, list[float]] = {"clean": [], "removed": []}
        right: dict[str, list[bool]] = {"clean": [], "removed": []}
        for image in range(4):
            stay = [prefix + p for p in range(16) if patches[image, p] == label]
            for control, places in (("clean", range(prefix + 16)), ("removed", [*range(prefix), *stay])):
                layout = net.tokens.keep(torch.tensor([*places]))
                stream = net(x[image : image + 1], stop_at_layer=0)[:, [*places]]
                out = net(stream, start_at_layer=0, stop_at_layer=2, tokens=layout)
                scores = project_tokens(net, out, layout)[0]
                first = [int(scores[i].argmax()) == labels[image] for i, p in enumerate(places) if p in stay]
                rates[control].append(np.mean(first))
                pooled[control] += first
                answer = net(out, start_at_layer=2, tokens=layout)
                right[control].append(bool(answer.argmax() == labels[image]))
        for control in ("clean", "removed"):
            for measure, want in (
                ("rate", np.mean(rates[control])),
                ("rate_micro", np.mean(pooled[control])),
                ("accuracy", np.mean(right[control])),
            ):
                (row,) = [r for r in rows if (r["measure"], r["kept"], r.get("control")) == (measure, kept, control)]
                assert row["value"] == pytest.approx(want, abs=1e-6), (kept, control, measure)
                assert row["n"] == 4
    assert [r["value"] for r in rows if r["measure"] == "skipped"] == [1.0, 1.0]


def test_published_numbers_mix_tokens_with_images_count_cls_and_empty_images() -> None:
    """Four images of class 0: class tokens 1 of 1 right, 0 of 3 right, none at all, and nothing else: 1 of 4 right."""
    net = inert(reads_pixels=True)
    white, black = 1.0, -1.0
    cells = torch.tensor(
        [[white, black, black, black], [black, black, black, black], [black] * 4, [white] + 3 * [black]]
    )
    x = cells.reshape(4, 1, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1).contiguous()
    patches = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    batch = [(x, torch.zeros(4, dtype=torch.long), patches, torch.arange(4))]

    def rates(published: bool) -> dict[str, float]:
        rows = measure_removal(net, batch, draws=1, published=published)
        return {
            f"{r['measure']} {r['control']}": r["value"]
            for r in rows
            if r["kept"] == "class" and r["measure"].startswith("rate") and r["control"] != "random"
        }

    correct = rates(False)
    assert correct["rate clean"] == correct["rate removed"] == pytest.approx(0.5)
    assert correct["rate_micro clean"] == correct["rate_micro removed"] == pytest.approx(0.25)
    published = rates(True)
    # pooled over tokens without CLS, against the mean over images of (2 of 2, 1 of 4, CLS alone, 2 of 5)
    want = {"rate clean": 2 / 8, "rate removed": (1 + 1 / 4 + 1 + 2 / 5) / 4}
    assert published == pytest.approx(want)


def test_a_pooled_rate_has_an_interval_over_images() -> None:
    row = pooled_rate(np.tile([3.0, 0.0, 1.0], 8), np.tile([3.0, 1.0, 4.0], 8))
    assert row["value"] == 0.5
    assert row["low"] <= 0.5 <= row["high"]
    assert row["n"] == 24
    assert np.isnan(pooled_rate(np.array([3.0, 0.0, 1.0]), np.array([3.0, 1.0, 4.0]))["low"])  # of three there is none
    assert np.isnan(pooled_rate(np.zeros(2), np.zeros(2))["value"])


@pytest.fixture(scope="module")
def result():
    nets = {name: HookedViT.from_hf(make_hf(name), processor=SQUASH) for name in ("vit", "beit-mean-both")}
    return token_removal(nets, load_data("scenes:test", n=24), fit_data=FIT, rule="any", draws=1, batch_size=12)


def test_the_analysis_has_both_groups_and_their_controls(result) -> None:
    rates = result.frame[result.frame.measure == "rate"]
    assert set(zip(rates.kept, rates.control, strict=True)) == {
        (kept, control) for kept in ("class", "context") for control in ("clean", "removed", "random")
    }
    assert len(result.meta["table"]) == len(result.meta["summary"]) == 4
    assert all(row["images"] + row["skipped"] == 24 for row in result.meta["table"])


def test_the_figure_holds_every_model(result) -> None:
    text = removal_figure(result).to_json()
    assert "vit" in text
    assert "beit-mean-both" in text


def test_published_settings_are_noted() -> None:
    net = HookedViT.from_hf(make_hf("vit"), processor=SQUASH)
    result = token_removal({"vit": net}, load_data("scenes:test", n=16), fit_data=FIT, repro=True, draws=1)
    assert any("not the same quantity" in note for note in result.meta["notes"])
    assert "rate_micro" not in set(result.frame.measure)


def test_bad_input_is_refused() -> None:
    net = HookedViT.from_hf(make_hf("vit"), processor=SQUASH)
    unmasked = as_data(([Image.new("RGB", (8, 8))] * 10, [0, 1, 2, 3, 4] * 2))
    with pytest.raises(ValueError, match="no column 'mask'"):
        token_removal({"vit": net}, unmasked)
    with pytest.raises(ValueError, match="at least one random removal"):
        token_removal({"vit": net}, unmasked, draws=0)
    assert net.run.n_forwards == 0
