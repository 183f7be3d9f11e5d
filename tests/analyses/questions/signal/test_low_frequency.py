"""The low-frequency study on models and pictures of which the answers are known."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import r2_score
from transformers import ViTImageProcessorPil

from analyses import Result
from analyses.activations.sites import draws_of, role_vector
from analyses.activations.streams import read_stream
from analyses.data import ImageData, as_data
from analyses.questions.signal.cls_parameter import cls_swaps
from analyses.questions.signal.low_frequency.domain_probe import domain_rows, equal_halves
from analyses.questions.signal.low_frequency.figure import summary_table
from analyses.questions.signal.low_frequency.low_frequency import low_frequency
from analyses.questions.signal.regression import GramRegression
from analyses.questions.signal.similarity import cosine
from analyses.questions.signal.spectrum import Filter, band_edges, log_band_energies, luminance, shown_pixels
from analyses.running.catalogue import get_analysis
from hooked_vit import HookedViT, TokenLayout
from interventions import apply
from tests.tiny import CLASSES, IMAGE, PATCH, make_hf, tiny

PROCESSOR = ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
MODELS = ("deit-teacher", "registers", "beit-mean-both")
RADII = (2.0, 6.0, 100.0)


def model(name: str) -> HookedViT:
    return HookedViT.from_hf(make_hf(name), processor=PROCESSOR)


def coloured(n: int, seed: int, shift: int = 0) -> ImageData:
    """Noise of different strength whose mean colour is its class."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % CLASSES)
    base = np.random.default_rng(0).uniform(60, 200, (CLASSES, 3)) + shift
    noise = [rng.normal(0, rng.uniform(5, 40), (IMAGE, IMAGE, 3)) for _ in labels]
    pictures = [np.clip(base[y] + x, 0, 255).astype(np.uint8) for y, x in zip(labels, noise, strict=True)]
    return as_data(([Image.fromarray(p) for p in pictures], labels.tolist()))


@pytest.fixture(scope="module")
def result() -> Result:
    models = {name: model(name) for name in MODELS}
    return low_frequency(
        models, coloured(40, 1), fit_data=coloured(60, 2), domain_data=coloured(50, 3, 40), radii=RADII, bands=4,
        seeds=1, batch_size=16,
    )  # fmt: skip


def pick(result: Result, name: str, measure: str, **where: object) -> pd.DataFrame:
    rows = result.frame[(result.frame.model == name) & (result.frame.measure == measure)]
    for column, value in where.items():
        rows = rows[(rows[column] == value).fillna(False)]
    return rows


@pytest.mark.parametrize("name", MODELS)
def test_a_filter_that_keeps_everything_changes_nothing(result: Result, name: str) -> None:
    for measure in ("cosine", "centred_cosine", "cka", "cka_debiased"):
        values = pick(result, name, measure, filter="low", radius=100.0).value
        assert len(values)
        assert np.allclose(values, 1, atol=1e-4)
    clean = pick(result, name, "probe")
    kept = clean[(clean["filter"] == "low") & (clean.radius == 100.0)].set_index(["token", "layer"]).value
    whole = clean[clean["filter"].isna()].set_index(["token", "layer"]).value
    assert (kept - whole).abs().max() <= 1 / 40


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_complete_and_within_their_intervals(result: Result, name: str) -> None:
    roles = {*model(name).tokens.roles, "random_patch"}
    sites = len(roles) * 2
    assert set(pick(result, name, "cosine").token) == roles
    assert len(pick(result, name, "cosine")) == len(pick(result, name, "cka")) == sites * 2 * len(RADII)
    assert len(pick(result, name, "probe")) == sites * (2 * len(RADII) + 1)
    assert len(pick(result, name, "r2", variant="trained")) == sites * 4
    assert len(pick(result, name, "r2", variant="random weights")) == 2 * 2 * 4
    assert len(pick(result, name, "r2", variant="random projection of pixels")) == 4
    assert len(pick(result, name, "domain")) == sites + 1
    rows = result.frame[(result.frame.model == name) & result.frame.low.notna()]
    assert ((rows.low <= rows.value + 1e-12) & (rows.value <= rows.high + 1e-12)).all()
    assert (pick(result, name, "cosine").n == 40).all()


def test_a_cosine_is_that_of_two_separate_runs(result: Result) -> None:
    one = model("registers")
    images = next(coloured(40, 1).batches(40))
    pixels = one.preprocess(images.images)
    drawn = draws_of(one.tokens, images.index, 0)
    for role in ("cls", "registers", "patches", "random_patch"):
        runs = [
            read_stream(one, x, lambda resid, role=role: role_vector(resid, one.tokens, role, drawn))[1]
            for x in (pixels, Filter("high", 2.0)(pixels))
        ]
        for layer in range(2):
            want = float(cosine(runs[0][layer], runs[1][layer]).mean())
            got = pick(result, "registers", "cosine", token=role, layer=layer, filter="high", radius=2.0).value.iloc[0]
            assert got == pytest.approx(want, abs=1e-5)


def test_a_swap_is_the_run_under_the_intervention(result: Result) -> None:
    one = model("deit-teacher")
    batch = next(coloured(40, 1).batches(40))
    pixels = one.preprocess(batch.images)
    swap = next(s for s in cls_swaps(one, torch.zeros(one.cfg.d_model), seeds=1) if s.variant == "zeros")
    with apply(one, swap.intervention), torch.no_grad():
        right = (one(pixels).argmax(-1) == batch.labels).double().mean()
    got = pick(result, "deit-teacher", "swap_accuracy", variant="zeros", position=True).value.iloc[0]
    assert got == pytest.approx(float(right))


def test_the_swaps_there_are() -> None:
    def names(name: str) -> list[tuple[str, bool]]:
        _, one = tiny(name)
        return [(s.variant, s.position) for s in cls_swaps(one, torch.zeros(one.cfg.d_model), seeds=1)]

    both = [(v, p) for v in ("normal", "zeros", "mean patch") for p in (True, False)]
    assert names("vit") == [("learned", False), *both]
    # no position embedding of CLS, so none to leave out
    assert names("beit-mean-both") == [(v, True) for v in ("normal", "zeros", "mean patch")]


def test_the_mean_patch_is_that_of_the_data_the_probes_are_fitted_on(result: Result) -> None:
    from analyses.questions.signal.low_frequency.frequency_study import FrequencyStudy

    one = model("vit")
    study = FrequencyStudy(
        "vit", one, None, one.shared_copy(), n_classes=CLASSES, layers=(0, 1), radii=(2.0,), bands=2, seeds=1, seed=0,
        repro=False, memory_budget=1,
    )  # fmt: skip
    study.fit(coloured(30, 2), 7)
    swap = next(s for s in study.swaps if s.variant == "mean patch" and s.position)
    pixels = one.preprocess(next(coloured(30, 2).batches(30)).images)
    with torch.no_grad():
        patches = one.embed(pixels)[:, 1:].mean((0, 1))
    assert torch.allclose(swap.intervention.params["vector"], patches, atol=1e-5)


def test_band_energies_are_regressed_on_the_tokens_of_both_sets(result: Result) -> None:
    one = model("registers")
    edges = band_edges(IMAGE, IMAGE, 4)

    def both(data: ImageData) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = one.preprocess(next(data.batches(100)).images)
        _, layers = read_stream(one, pixels, lambda resid: resid[:, one.tokens.patches].mean(1))
        return layers[1], log_band_energies(luminance(shown_pixels(one, pixels)), edges)

    fit = GramRegression()
    x, y = both(coloured(60, 2))
    fit.update({"site": x}, y)
    x, y = both(coloured(40, 1))
    want = r2_score(y.numpy(), fit.fit()["site"].predict(x).numpy(), multioutput="raw_values")
    got = pick(result, "registers", "r2", variant="trained", token="patches", layer=1).sort_values("band").value
    assert got.to_numpy(float) == pytest.approx(want, abs=1e-3)


def test_the_memory_budget_changes_no_number() -> None:
    runs = [
        low_frequency({"vit": model("vit")}, coloured(24, 1), fit_data=coloured(30, 2), radii=(2.0, 5.0), bands=3,
                      seeds=1, memory_budget=budget)
        for budget in (1, 2**30)
    ]  # fmt: skip
    by = ["measure", "token", "layer", "filter", "radius", "band", "variant", "seed", "position"]
    first, second = (r.frame.sort_values(by, kind="stable").value.to_numpy(float) for r in runs)
    assert np.allclose(first, second, atol=1e-6, equal_nan=True)


def test_the_published_filter_is_an_option() -> None:
    runs = [
        low_frequency({"vit": model("vit")}, coloured(24, 1), fit_data=coloured(30, 2), radii=(3.0,), bands=3, seeds=1,
                      repro=repro)
        for repro in (False, True)
    ]  # fmt: skip
    values = [pick(r, "vit", "cosine", filter="high").value.mean() for r in runs]
    assert abs(values[0] - values[1]) > 1e-4
    assert any("magnitude" in note for note in runs[1].meta["notes"])
    assert np.allclose(pick(runs[0], "vit", "r2").value, pick(runs[1], "vit", "r2").value)


def test_the_domain_probe_finds_a_shift_and_no_more() -> None:
    def read(batch: object) -> dict[str, torch.Tensor]:
        pixels = torch.stack([torch.from_numpy(np.array(image)).float() for image in batch.images])  # type: ignore[attr-defined]
        return {"mean": pixels.mean((1, 2))}

    apart = dict(domain_rows(equal_halves([coloured(60, 1), coloured(90, 2, 50)]), read, 16, "test"))
    assert apart["mean"]["value"] > 0.7
    assert apart["chance"]["value"] == pytest.approx(0.5, abs=0.05)
    assert apart["mean"]["n"] == pytest.approx(60, abs=2)
    alike = dict(domain_rows(equal_halves([coloured(200, 1), coloured(200, 2)]), read, 64, "test"))
    assert alike["mean"]["low"] <= 0.5 <= alike["mean"]["high"] + 0.02
    with pytest.raises(ValueError, match="at least two data sets"):
        equal_halves([coloured(10, 1)])


def test_a_random_patch_belongs_to_its_image_not_to_its_batch() -> None:
    layout = TokenLayout.native(("cls", "registers"), (IMAGE // PATCH, IMAGE // PATCH))
    positions = torch.arange(layout.n_tokens, dtype=torch.float32)[:, None]

    def drawn(index: torch.Tensor) -> torch.Tensor:
        resid = positions.expand(len(index), -1, -1)
        return role_vector(resid, layout, "random_patch", draws_of(layout, index, seed=3))[:, 0]

    whole = drawn(torch.arange(50))
    assert torch.equal(whole, torch.cat([drawn(i) for i in torch.arange(50).split(7)]))
    assert set(whole.tolist()) <= set(range(2, layout.n_tokens))
    assert len(set(whole.tolist())) > 8


def test_refusals_come_before_any_run() -> None:
    one = {"vit": model("vit")}
    for options, words in (
        ({"radii": (-1.0,)}, "none below 0"),
        ({"radii": ()}, "none below 0"),
        ({"radii": (2.0, 2.0)}, "each value once"),
        ({"seeds": 0}, "at least one draw"),
        ({"bands": 40}, "no frequency in bands"),
    ):
        with pytest.raises(ValueError, match=words):
            low_frequency(one, coloured(20, 1), fit_data=coloured(20, 2), **options)
    assert one["vit"].run.n_forwards == 0
    with pytest.raises(ValueError, match="image processor"):
        low_frequency({"vit": tiny("vit")[1]}, coloured(20, 1), fit_data=coloured(20, 2))


def test_figures_and_words_have_every_model(result: Result, tmp_path: Path) -> None:
    entry = get_analysis("low-frequency")
    assert entry.figure is not None
    for draw in (entry.figure, *entry.more_figures.values()):
        figure = draw(Result.load(result.save(tmp_path)))
        assert {a.text for a in figure.layout.annotations} >= set(MODELS)
        assert figure.data
    assert set(summary_table(result).model) == set(MODELS)
    for name in MODELS:
        assert sum(sentence.startswith(name) for sentence in result.meta["summary"]) == 5


@pytest.mark.parametrize(
    ("layers", "measured"), [((0,), {"vit": [0], "deep": [0]}), ((1, -1), {"vit": [1], "deep": [1, 4]})]
)
def test_words_and_figures_are_of_the_layers_measured(layers: tuple[int, ...], measured: dict[str, list[int]]) -> None:
    deep = HookedViT.from_hf(make_hf("vit", num_hidden_layers=5), processor=PROCESSOR)
    run = low_frequency(
        {"vit": model("vit"), "deep": deep}, coloured(24, 1), fit_data=coloured(30, 2), radii=(3.0,), bands=2, seeds=1,
        layers=layers,
    )  # fmt: skip
    for name, there in measured.items():
        of = "1 block" if len(there) == 1 else "2 blocks"
        (told,) = (s for s in run.meta["summary"] if s.startswith(f"{name}: that CLS holds"))
        assert f" of {of} measured (" in told
        named = re.findall(r"\d+", " ".join(re.findall(r"\(([^)]*)\)", told)))
        assert set(map(int, named)) <= set(there)
    entry = get_analysis("low-frequency")
    assert entry.figure is not None
    drawn = [draw(run) for draw in (entry.figure, *entry.figures(run).values())]
    assert all(figure.data for figure in drawn)
    ends = [list(trace.x) for trace in drawn[1].data if trace.legendgroup == "no difference"]
    assert ends == [[x[0] - 0.5, x[0] + 0.5] if len(x) == 1 else x for x in measured.values()]


def test_a_token_that_is_the_same_in_every_image_has_no_centred_cosine() -> None:
    """Attention that writes nothing in block 0 leaves CLS as it was put in: about its mean there is only rounding."""
    blind = model("vit")
    with torch.no_grad():
        blind.blocks[0].attn.o.weight.zero_()
    run = low_frequency(
        {"vit": blind}, coloured(24, 1), fit_data=coloured(30, 2), radii=(3.0,), bands=3, seeds=1, batch_size=16
    )
    for measure in ("centred_cosine", "swap_cosine", "cka", "cosine_gain"):
        rows = pick(run, "vit", measure, token="cls")
        assert rows[rows.layer == 0].value.isna().all()
        assert not rows[rows.layer == 1].value.isna().any()
    assert sum("CLS behind layer 0 is the same in every image" in note for note in run.meta["notes"]) == 1
    for draw in (get_analysis("low-frequency").figure, *get_analysis("low-frequency").more_figures.values()):
        assert draw is not None
        draw(run)


def test_the_verdict_follows_the_intervals(result: Result) -> None:
    def with_gains(low: float, high: float) -> Result:
        frame = result.frame[result.frame.model == "registers"].copy()
        for kind, value in (("low", low), ("high", high)):
            here = frame.measure.isin(["cosine_gain", "r2_gain"]) & (frame["filter"] == kind)
            frame.loc[here, ["value", "low", "high"]] = value, value - 0.1, value + 0.1
        return replace(result, frame=frame)

    for gains, blocks, specific in (
        ((0.3, 0.1), "0, 1", "0, 1"),
        ((0.3, 0.5), "0, 1", "none"),
        ((0.05, 0.0), "none", "none"),
    ):
        row = summary_table(with_gains(*gains)).iloc[0]
        assert (row.blocks_for, row.specific_blocks) == (blocks, specific)
