"""How probes are fitted, and what comes of one pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from analyses.probes.estimators import SELECTIONS
from analyses.probes.fitted import FittedProbes
from analyses.probes.store import MEMORY
from analyses.probes.training import Training

KINDS = ("ridge", "logistic", "mlp")


@dataclass(frozen=True, kw_only=True)
class Probing:
    """How probes are fitted.

    `roles` (see `check_roles`; all kinds of tokens where none are named) are read behind the blocks `layers` (all; -1
    is the embedding). `probe` is "ridge", "logistic" or "mlp". A ridge penalty is the best of `alphas`, or where
    there are none of a grid that follows the features, by `select`: "gcv", or "held_out" on a share of the images. The
    others go through features more than once: `memory` bytes of them are kept, and what is more goes to disk in
    `scratch`; then logistic probes too are trained in mini-batches, as `training` says. `seed` draws random patches,
    what is held out, and permutations.
    Raises ValueError for a setting there is not.
    """

    roles: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    probe: str = "ridge"
    alphas: tuple[float, ...] | None = None
    select: str = "gcv"
    held_out: float = 0.2
    training: Training = field(default_factory=Training)
    seed: int = 0
    batch_size: int = 64
    memory: int = MEMORY
    scratch: str | Path | None = None

    def __post_init__(self) -> None:
        if self.probe not in KINDS:
            raise ValueError(f"a probe is {', '.join(KINDS)}; got {self.probe!r}")
        if self.select not in SELECTIONS:
            raise ValueError(f"a penalty is selected by {' or '.join(SELECTIONS)}; got {self.select!r}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"the share held out is between 0 and 1, got {self.held_out}")


@dataclass(frozen=True, eq=False)
class Fits:
    """Probes from one pass: on the labels, on `permuted` labels, on principal components (`pca`), on fewer images.

    `control` are those of a control task, where there was one. `curve` holds them by number of images; sizes with
    images of one class only are left out.
    """

    probes: FittedProbes
    permuted: list[FittedProbes]
    pca: FittedProbes | None
    curve: dict[int, FittedProbes]
    control: FittedProbes | None = None
