"""Fitted probes of many sites of one model: kept, and applied to a run, as it is or under any intervention."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int64, UInt64
from safetensors.torch import load, save
from torch import Tensor

from analyses.activations.sites import Site, SiteReader
from analyses.data import ImageData
from analyses.data.contents import APART
from analyses.probes.class_moments import sites_by_note
from analyses.probes.passes import Edit, apart_from_fit, edited_sites, read_sites
from analyses.probes.probe import Probe
from analyses.probes.targets import Target, TargetData, target_data
from analyses.running.files import check_writable, committed, write_together
from analyses.running.notes import note_other_model
from analyses.running.notice import notice
from analyses.statistics.intervals import RATE, mean_row, rate_row
from analyses.statistics.ranks import correct, identifiability, rank
from hooked_vit import HookedViT
from hooked_vit.config.showing import Displayed, counted, some

FORMAT = 1
FILES = ("probes.json", "probes.safetensors")
SEEN = "seen"


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(Displayed):
    """What probes said of images: per site how often they were right, and how high they ranked the true class.

    `hits` images whose true class came first and alone; `score`, `squares` and `cubes` sums of 1 − rank / classes over
    images, of its square and its cube, by site; `ranks` in every image [n], where asked for; `counts` images per class.
    """

    counts: tuple[int, ...]
    hits: dict[str, int]
    score: dict[str, float]
    squares: dict[str, float]
    cubes: dict[str, float]
    ranks: dict[str, Float64[Tensor, "n"]] = field(default_factory=dict)

    def _rows(self) -> dict[str, object]:
        named = {site: f"accuracy {hits / self.n:.2f}" for site, hits in self.hits.items()}
        return {"images": self.n, "chance": f"{self.chance:.2f}", "sites": len(self.hits), **named}

    @property
    def n(self) -> int:
        """Images measured."""
        return sum(self.counts)

    @property
    def chance(self) -> float:
        """Accuracy of always naming the most frequent class."""
        return max(self.counts) / self.n

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row per site and measure: role, layer, accuracy and identifiability with their intervals."""
        for site, hits in self.hits.items():
            place = Site.parse(site)._asdict()
            yield {**place, "measure": "accuracy", **rate_row(hits, self.n)}
            read = mean_row(self.score[site], self.squares[site], self.cubes[site], self.n, bounds=RATE)
            yield {**place, "measure": "identifiability", **read}

    @property
    def frame(self) -> pd.DataFrame:
        """The rows as a table."""
        return pd.DataFrame(self.rows()).astype({"layer": "Int64"})

    def accuracy(self, role: str, layer: int | None = None) -> float:
        """Share of images, 0 to 1, of which the probe of a site named the class.

        Raises KeyError for a site that was not read.
        """
        return self.hits[str(Site(role, layer))] / self.n


@dataclass(frozen=True, eq=False, repr=False)
class FittedProbes(Displayed):
    """Probes by the name of their site, with what they were asked and what they were fitted on.

    >>> probes = fit_probes(model, data, roles=("cls", "patches"))  # doctest: +SKIP
    >>> probes.evaluate(model, test).accuracy("cls", 3)  # doctest: +SKIP
    >>> probes.evaluate(model, test, shuffle_cls(layer=2)).accuracy("cls", 3)  # doctest: +SKIP

    `counts` are the training images of each class, `patch_seed` draws the random patches, `model` describes the model,
    `seen` holds a mark of the pixels of every image of the pass they were fitted in.
    Probes that were `loaded` say so where they read a model of other weights.
    """

    probes: dict[str, Probe] = field(repr=False)
    target: Target
    kind: str
    counts: tuple[int, ...]
    patch_seed: int = 0
    model: dict[str, Any] = field(default_factory=dict, repr=False)
    seen: UInt64[np.ndarray, "k"] = field(default_factory=lambda: np.zeros(0, np.uint64), repr=False)
    loaded: bool = False

    def _rows(self) -> dict[str, object]:
        roles = dict.fromkeys(site.role for site in self.sites)
        reads = f"{len(self.probes)} of {', '.join(roles)}"
        asked = f"{self.target.spec}: {counted(self.target.n_classes, 'class', 'classes')}"
        about = {"kind": self.kind, "of": self.model.get("name", ""), "sites": reads, "target": asked}
        return {**about, "images": sum(self.counts), "notes": "; ".join(self.notes)}

    @property
    def sites(self) -> list[Site]:
        """Where the probes read."""
        return [Site.parse(name) for name in self.probes]

    def __getitem__(self, site: str | tuple[str, int | None]) -> Probe:
        return self.probes[site if isinstance(site, str) else str(Site(*site))]

    @property
    def notes(self) -> list[str]:
        """What a reader must know of the fits: classes without an image, features that do not vary, a grid's edge."""
        notes = [f"{sites}: {note}" for note, sites in sites_by_note(self.probes).items()]
        unmet = [name for name, n in zip(self.target.classes, self.counts, strict=True) if not n]
        if unmet:
            n = sum(self.counts)
            few = f"; only {counted(n, 'image was', 'images were')} there" if n < len(self.counts) else ""
            notes.append(f"without an image to fit on, and so never predicted: {some(unmet)}{few}")
        return notes

    def evaluate(
        self,
        model: HookedViT,
        data: ImageData | TargetData | Any,
        intervention: Edit | None = None,
        *,
        batch_size: int = 64,
        per_image: bool = False,
        by_heart: bool = False,
    ) -> Evaluation:
        """What the probes read from a model on images, as it runs or under an intervention: nothing is fitted again.

        The seed of an intervention is another for every batch (the given one, times a million or so, plus the number
        of the batch), or else the same draw would come back in each; a function (number of batch, labels) ->
        intervention takes that in hand itself. `per_image` keeps the rank of the true class in every image.
        With `by_heart` images may be those fitted on, of which the probes say what they learned by heart.
        Raises ValueError for an image that the probes were fitted on, to the pixel, for a model without these sites, of
        another width, and for classes the probes do not know.
        """
        how: dict[str, Any] = {"batch_size": batch_size, "per_image": per_image, "by_heart": by_heart}
        return evaluate_probes(model, {"": self}, data, intervention, **how)[""]

    def save(self, folder: str | Path) -> Path:
        """Write `probes.safetensors` and `probes.json` into `folder`, made if need be, at once. Returns the folder."""
        folder = check_writable(folder)
        tensors: dict[str, Tensor] = {}
        about: dict[str, dict[str, Any]] = {}
        for site, probe in self.probes.items():
            for i, (weight, bias) in enumerate(probe.layers):
                tensors |= {f"{site}/{i}/weight": weight.contiguous().cpu(), f"{site}/{i}/bias": bias.cpu()}
            tensors[f"{site}/classes"] = probe.classes.cpu()
            about[site] = {"penalty": probe.penalty, "n": probe.n, "note": probe.note, "layers": len(probe.layers)}
        tensors[SEEN] = torch.from_numpy(self.seen.view(np.int64))
        stored = {
            "format": FORMAT, "probes": about, "target": asdict(self.target), "kind": self.kind,
            "counts": self.counts, "patch_seed": self.patch_seed, "model": self.model,
        }  # fmt: skip
        content = save({name: tensor.clone() for name, tensor in tensors.items()})
        stored["checksum"] = hashlib.sha256(content).hexdigest()
        about_them = json.dumps(stored, indent=2) + "\n"
        write_together(folder, {
            "probes.safetensors": lambda path: path.write_bytes(content),
            "probes.json": lambda path: path.write_text(about_them, encoding="utf-8"),
        })  # fmt: skip
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> FittedProbes:
        """Read back what `save` wrote, number for number.

        Raises FileNotFoundError for a folder without probes, ValueError for those of another version and damaged ones.
        """
        folder = Path(folder)
        found = {name: path for name in FILES if (path := committed(folder, name)) and path.is_file()}
        if missing := [name for name in FILES if name not in found]:
            raise FileNotFoundError(f"saved probes are probes.json and probes.safetensors; {folder} lacks {missing}")
        stored = json.loads(found["probes.json"].read_text(encoding="utf-8"))
        if stored.get("format") != FORMAT:
            raise ValueError(f"{folder} holds probes of format {stored.get('format')}; this version reads {FORMAT}")
        content = found["probes.safetensors"].read_bytes()
        if stored.get("checksum") != hashlib.sha256(content).hexdigest():
            raise ValueError(f"the probes in {folder} are damaged: their checksum is another; fit and save them again")
        tensors = load(content)
        probes = {}
        for site, about in stored["probes"].items():
            layers = tuple(
                (tensors[f"{site}/{i}/weight"], tensors[f"{site}/{i}/bias"]) for i in range(about.pop("layers"))
            )
            probes[site] = Probe(layers, tensors[f"{site}/classes"], **about)
        target = Target(stored["target"]["spec"], tuple(stored["target"]["classes"]))
        seen = tensors.get(SEEN, torch.zeros(0, dtype=torch.int64)).numpy().view(np.uint64)
        counts = tuple(stored["counts"])
        return cls(probes, target, stored["kind"], counts, stored["patch_seed"], stored["model"], seen, True)


def evaluate_probes(
    model: HookedViT,
    fitted: Mapping[Any, FittedProbes],
    data: ImageData | TargetData | Any,
    intervention: Edit | None = None,
    *,
    columns: Mapping[Any, int] | None = None,
    batch_size: int = 64,
    per_image: bool = False,
    by_heart: bool = False,
    what: str = "applying probes",
) -> dict[Any, Evaluation]:
    """Several sets of probes of the same sites on one pass over the images; `columns` says whose target is another.

    >>> evaluate_probes(model, {"probe": probes, "permuted": others}, test)["permuted"].frame  # doctest: +SKIP

    Parameters and errors are those of `FittedProbes.evaluate`.
    """
    one = next(iter(fitted.values()))
    if any(f.probes.keys() != one.probes.keys() or f.patch_seed != one.patch_seed for f in fitted.values()):
        raise ValueError("probes that are applied together read the same sites, and the same random patches")
    if one.loaded:
        note_other_model("these probes were fitted on", model, one.model)
        if not len(one.seen):
            notice(f"{APART}, which is not known of these: they were saved without what those images hold")
    data = target_data(data, one.target)
    sites = one.sites
    layers = sorted({s.layer for s in sites if s.layer is not None}) or [0]
    reader = SiteReader(model, list(dict.fromkeys(s.role for s in sites)), layers=layers, seed=one.patch_seed)
    panels = {site: _Panel([f.probes[site] for f in fitted.values()]) for site in one.probes}
    targets = [(columns or {}).get(key, 0) for key in fitted]
    n_classes = one.target.n_classes
    counts = torch.zeros(n_classes, dtype=torch.int64)
    sums = {site: torch.zeros(4, len(fitted), dtype=torch.float64) for site in panels}
    ranks: dict[str, list[Tensor]] = {site: [] for site in panels}
    into = (counts, sums, ranks)
    clean = read_sites(reader, data, batch_size, what, into=into) if intervention is None else None
    passed = clean or edited_sites(reader, data, batch_size, what, intervention, into=into)
    with nullcontext() if by_heart else data.refusing(apart_from_fit([f.seen for f in fitted.values()])):
        for batch, _, features in passed:
            labels = batch.labels[:, targets]
            for site, panel in panels.items():
                pos = _ranks(panel, features[site], labels, site)
                score = identifiability(pos, n_classes)
                sums[site] += torch.stack([correct(pos).double().sum(0), *(score.pow(k).sum(0) for k in (1, 2, 3))])
                if per_image:
                    ranks[site].append(pos)
            counts += batch.labels[:, 0].bincount(minlength=n_classes)
    if not counts.any():
        raise ValueError(f"probes are measured on images; {data.name} has none")
    kept = {site: torch.cat(parts) for site, parts in ranks.items() if parts}
    return {
        key: Evaluation(
            tuple(counts.tolist()),
            {site: int(total[0, j]) for site, total in sums.items()},
            {site: float(total[1, j]) for site, total in sums.items()},
            {site: float(total[2, j]) for site, total in sums.items()},
            {site: float(total[3, j]) for site, total in sums.items()},
            {site: pos[:, j] for site, pos in kept.items()},
        )
        for j, key in enumerate(fitted)
    }


class _Panel:
    """Probes of one site, those with a single affine map as one matrix product."""

    def __init__(self, probes: Sequence[Probe]) -> None:
        self.probes = probes
        self.linear = all(len(p.layers) == 1 for p in probes)
        if self.linear:
            self.weight = torch.cat([p.layers[0][0] for p in probes])
            self.bias = torch.cat([p.layers[0][1] for p in probes])

    def scores(self, x: Float[Tensor, "b d"]) -> Float[Tensor, "b k c"]:
        if not self.linear:
            return torch.stack([p.scores(x) for p in self.probes], dim=1)
        flat = x.to(self.weight) @ self.weight.T + self.bias
        return flat.unflatten(1, (len(self.probes), -1))


def _ranks(panel: _Panel, x: Float[Tensor, "b d"], labels: Int64[Tensor, "b k"], site: str) -> Float64[Tensor, "b k"]:
    if x.shape[1] != panel.probes[0].d:
        raise ValueError(f"the probe of {site} reads {panel.probes[0].d} units; this model has {x.shape[1]} there")
    if bad := int((~torch.isfinite(x)).any(1).sum()):
        raise ValueError(f"features of {site!r} hold NaN or infinity in {bad} of {len(x)} rows; a probe needs numbers")
    return rank(panel.scores(x).cpu(), labels)
