"""Three readers of CLS at every layer: the model's own head, a probe of the layer's own, and a translator to the head.

Where the head reads nothing and the probe does, the label is there in another code than the last layer's. A translator
tells how much of that is an affine change of code. methods section 4; Vilas et al., NeurIPS 2023; Belrose et al. 2023.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from analyses.activations.layers import measured_layers
from analyses.activations.sites import Site, SiteReader
from analyses.controls.random_weights import with_random_weights
from analyses.data import ImageData
from analyses.probes.classifier_heads import Answers
from analyses.probes.opening import open_study
from analyses.probes.passes import Reading, read_images
from analyses.probes.ridge import RidgeProbe
from analyses.probes.role_probes import check_role, fit_role_probes
from analyses.questions.decoding.lenses.figure import (
    divergence_figure,
    in_words,
    main_figure,
    path_figure,
    summary_table,
)
from analyses.questions.decoding.lenses.translators import Translators, fit_translators, kl_divergence
from analyses.running.registry import analysis
from analyses.running.results import Result
from analyses.statistics.intervals import mean_intervals, rate_row
from analyses.statistics.ranks import correct, identifiability, rank
from analyses.statistics.significance import uncorrected
from hooked_vit import HookedViT

Key = tuple[str, str, int | None]
"""(measure, reader, layer)"""


@analysis(
    figure=main_figure,
    more_figures={
        "Identifiability against accuracy: the way through the layers": path_figure,
        "How far each reading is from what the model says in the end": divergence_figure,
    },
)
def lenses(
    models: Mapping[str, HookedViT], data: ImageData | Any = None, *,
    fit_data: ImageData | Any = None, tokens: str = "cls", final_ln: bool = True, random_models: int = 3,
    steps: int = 500, lens_images: int = 10_000, batch_size: int = 128, head: str = "auto", seed: int = 0,
    repro: bool = False, layers: tuple[int, ...] | None = None, activations: tuple[str, ...] | None = None,
) -> Result:  # fmt: skip
    """What do the model's own head, a probe and a translator read from CLS at each layer?

    >>> result = lenses({"vit": zoo.load("vit")})  # doctest: +SKIP
    >>> result.frame.query("measure == 'identifiability' and reader == 'head'")  # doctest: +SKIP

    Readers of the tokens of the role `tokens` (their mean, where they are several) after every block, or those of
    `layers` alone: `probe`, a ridge probe of the layer's own; `head`, the model's final norm and head as they are
    (`final_ln=False`, and `repro`: the bare head, as in the lab note's figure); `translator`, an affine map trained on
    `fit_data` (at most `lens_images` of it, which are held in memory, for `steps` mini-batches) to give the model's
    final distribution through that head. Controls: `random_head` and `random_probe`, the same on `random_models` models
    with random weights, and `chance`. `model` is the model's own answer.

    Measures: `accuracy` (Wilson interval), `identifiability` 1 − rank of the true class / classes, and `kl`, the
    divergence of the reading from the model's answer in nats (intervals over images). What a head reads whose
    family does not read these tokens is in `meta["notes"]`. With `activations`, folders that `store_activations`
    filled, the models do not run (controls of random weights do, unless they are stored too).
    Raises ValueError for a role a model has not, fewer than two classes, and labels a head does not know.
    """
    final_ln = final_ln and not repro
    if steps < 1 or random_models < 0 or lens_images < 20:
        raise ValueError(
            "lenses need at least 1 step, 20 images for a translator, and no negative number of random models; got "
            f"steps={steps}, lens_images={lens_images}, random_models={random_models}"
        )
    opening = open_study(models, data, fit_data, head)
    for name, model in models.items():
        check_role(name, model, tokens, "read")
    rows: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    for name, model in models.items():
        chosen = measured_layers(model, layers)
        probes, answers = fit_role_probes(name, model, opening, batch_size, tokens, chosen)
        bench = _Bench(name, answers, probes, tokens, final_ln)
        translators = bench.fit_translators(opening.fitted, lens_images, batch_size, steps, seed)
        found = [{**row, "seed": None} for row in bench.measure(opening.measured, batch_size, translators)]
        for k in range(random_models):
            untrained = with_random_weights(model, seed + k)
            what = f"{name}, random weights {k + 1} of {random_models}"
            beside = opening.with_control(what, untrained, like=name)
            its_probes, its_answers = fit_role_probes(what, untrained, beside, batch_size, tokens, chosen)
            control = _Bench(what, its_answers, its_probes, tokens, final_ln)
            found += [
                {**row, "reader": f"random_{row['reader']}", "seed": seed + k}
                for row in control.measure(opening.measured, batch_size, None)
                if row["reader"] in ("probe", "head") and row["measure"] != "kl"
            ]
        rows += [{"model": name, "architecture": model.cfg.architecture, **row} for row in found]
        about[name] = {
            **answers.about(),
            "lens": what_it_reads(answers.model, tokens),
            "classes_of_the_head": answers.model.cfg.n_classes,
            "translator_kl_held_out": {
                "before": translators.kl_before.tolist(),
                "after": translators.kl_after.tolist(),
            },
        }
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "seed": "Int64"})
    meta = {
        "models": about,
        **opening.about(n=int(frame.n.max())),
        "tokens": tokens,
        "final_ln": final_ln,
        "steps": steps,
        "lens_images": lens_images,
        "random_models": random_models,
        "seeds": list(range(seed, seed + max(1, random_models))),
        "batch_size": batch_size,
        "interventions": [],
    }
    result = Result(frame, meta)
    table = summary_table(result).astype(object)
    result.meta["table"] = table.where(table.notna(), None).to_dict("records")
    result.meta["summary"], result.meta["notes"] = in_words(result)
    result.meta["corrected"] = [uncorrected("a reader's best is above chance", "layers, readers and models")]
    return result


def what_it_reads(model: HookedViT, tokens: str) -> str:
    """What the model's head, held to tokens of this role, is in terms of what the family's head reads; "" if the same.

    >>> what_it_reads(zoo.load("vit"), "cls")  # doctest: +SKIP
    ''
    """
    sources = model.cfg.sources
    if model.cfg.attention_pool is not None:
        return f"the probe is given {tokens} alone, one at a time; the model's attends to the {' and '.join(sources)}"
    if sources == (tokens,):
        several = int(model.tokens.mask(tokens).sum()) > 1
        if several and model.cfg.final_norm not in ("pooled", "none"):
            return f"the norm is applied to the mean of the {tokens} tokens, the model averages behind it"
        return ""
    if tokens in sources:
        others = " and ".join(s for s in sources if s != tokens)
        return f"the part of the head that reads {tokens}, without {others}: not the model's answer at the last layer"
    reads = " and ".join(sources)
    return f"the family's head reads {reads}, never {tokens}; the lens gives it {tokens} in the place of {sources[0]}"


def _drawn(data: ImageData, most: int, seed: int) -> ImageData:
    """`most` of the images where there are more, drawn at random; a stream as it is."""
    if data.n is None or data.n <= most:
        return data
    order = torch.randperm(data.n, generator=torch.Generator("cpu").manual_seed(seed), device="cpu").argsort()
    return data.without((order >= most).nonzero().flatten().tolist())


class _Bench:
    """One model under its readers."""

    def __init__(
        self, name: str, answers: Answers, probes: Mapping[int, RidgeProbe], tokens: str, final_ln: bool
    ) -> None:
        self.name, self.answers, self.probes, self.tokens = name, answers, probes, tokens
        self.model = answers.model
        self.layers = list(probes)
        self.reader = SiteReader(self.model, (tokens,), layers=self.layers)
        if final_ln:
            self.head: Callable[[Tensor], Tensor] = lambda x: self.model.project(x, tokens)
        else:
            weight, bias = self.model.head_for(tokens)
            self.head = lambda x: F.linear(x, weight, bias)

    def fit_translators(self, data: ImageData, most: int, batch_size: int, steps: int, seed: int) -> Translators:
        """Translators from at most so many images of the data, drawn at random; of a stream from the first."""
        vectors: list[Tensor] = []
        targets: list[Tensor] = []
        what, into = f"{self.name}: vectors for the translators", (vectors, targets)
        drawn = _drawn(data, most, seed)
        for reading in read_images(self.reader, drawn, batch_size, what, answers=True, into=into):
            left = most - reading.batch.first
            vectors.append(torch.stack(self._at_layers(reading), 1)[:left].float())
            targets.append(self._answer(reading)[:left].float())
            if drawn.n is None and left <= len(reading.batch):
                break  # every process goes through a stream
        dtype = self.model.embed.patch.weight.dtype
        return fit_translators(
            torch.cat(vectors),
            torch.cat(targets),
            lambda x: self.head(x.to(dtype)).float(),
            steps=steps,
            seed=seed,
            what=f"{self.name}: translators",
        )

    @torch.no_grad()
    def measure(self, data: ImageData, batch_size: int, translators: Translators | None) -> list[dict[str, Any]]:
        """Rows of every reader and layer, of the model, and of chance."""
        columns: dict[Key, list[Tensor]] = defaultdict(list)
        labels: list[Tensor] = []
        into, what = (columns, labels), f"{self.name}: reading"
        for reading in read_images(self.reader, data, batch_size, what, answers=True, into=into):
            batch, logits, at_layer = reading.batch, self._answer(reading), self._at_layers(reading)
            true = self.answers.labels(batch.labels)
            labels.append(batch.labels)
            self._keep(columns, "model", None, logits, true)
            for place, (layer, x) in enumerate(zip(self.layers, at_layer, strict=True)):
                self._keep(columns, "probe", layer, self.probes[layer].scores(x), batch.labels)
                self._keep(columns, "head", layer, self.head(x), true, logits)
                if translators is not None:
                    translated = translators(place, x.float()).to(x.dtype)
                    self._keep(columns, "translator", layer, self.head(translated), true, logits)
        return list(self._rows({key: torch.cat(parts) for key, parts in columns.items()}, torch.cat(labels)))

    def _at_layers(self, reading: Reading) -> list[Tensor]:
        return [reading.features[str(Site(self.tokens, layer))] for layer in self.layers]

    @staticmethod
    def _answer(reading: Reading) -> Tensor:
        assert reading.answer is not None
        return reading.answer

    def _keep(
        self,
        columns: dict[Key, list[Tensor]],
        reader: str,
        layer: int | None,
        scores: Tensor,
        labels: Tensor,
        logits: Tensor | None = None,
    ) -> None:
        pos = rank(scores.cpu(), labels)
        columns["accuracy", reader, layer].append(correct(pos))
        columns["identifiability", reader, layer].append(identifiability(pos, scores.shape[-1]).float())
        if logits is not None:
            columns["kl", reader, layer].append(kl_divergence(logits, scores).float().cpu())

    def _rows(self, columns: dict[Key, Tensor], labels: Tensor) -> Iterator[dict[str, Any]]:
        n = len(labels)
        means = {key: values.double().numpy() for key, values in columns.items() if key[0] != "accuracy"}
        intervals = mean_intervals(means)
        for key, values in columns.items():
            measure, reader, layer = key
            at = {"measure": measure, "reader": reader, "layer": layer}
            if key in intervals:
                low, high = intervals[key]
                yield {**at, "value": float(means[key].mean()), "low": low, "high": high, "n": n}
            else:
                yield {**at, **rate_row(int(values.sum()), n)}
        classes = self.model.cfg.n_classes
        assert classes is not None
        luck = {"accuracy": int(labels.bincount().max()) / n, "identifiability": 0.5 + 0.5 / classes}
        for measure, value in luck.items():
            at = {"measure": measure, "reader": "chance", "layer": None}
            yield {**at, "value": value, "low": value, "high": value, "n": n}
