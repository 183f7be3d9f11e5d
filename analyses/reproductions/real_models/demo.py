"""What `demo --real` asks: the first experiment, of a real model and photographs on the hub, or of local ones."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hooked_vit.loading.hub import is_cached, trouble

if TYPE_CHECKING:
    from analyses.data import ImageData
    from hooked_vit import HookedViT

# commits, so that the numbers are those of one model and one set of images; MTEB pins the same two
MODEL = "facebook/dinov2-small@ed25f3a31f01632728cabb09d1542f84ab7b0056"
PHOTOGRAPHS = "uoft-cs/cifar10@0b2714987fa478483af9968de7c934580d0bb9a2"
DATA, FIT_DATA = f"hf:{PHOTOGRAPHS}:test", f"hf:{PHOTOGRAPHS}:train"
MEASURED, FITTED = 500, 1000
"""Photographs: as many as two cores go through in minutes at 224 pixels."""
BATCH = 50
"""A step of the progress bar is then half a minute."""
LOCAL = "hooked-vit demo --real --model FOLDER --data parquet:TEST.parquet --fit-data parquet:TRAIN.parquet"


def settle(args: Namespace) -> None:
    """Give the arguments of `demo --real` what was not said, as `run` takes them.

    Without `--fit-data` half of `--data` is set aside. Raises ValueError for `--fit-data` alone, ConnectionError at
    once, saying what to give instead, where what was not named is on the hub and that does not answer.
    """
    if args.fit_data is not None and args.data is None:
        raise ValueError("images to fit on are of the classes that are measured: give both, --data and --fit-data")
    far = []
    if args.model is None:
        args.model = MODEL
        far += [] if is_cached(MODEL) else [MODEL]
    if args.data is None:
        args.data, args.fit_data = DATA, FIT_DATA
        far += [f"the photographs of {PHOTOGRAPHS}"]
    args.model = [args.model]
    args.n = args.n or (MEASURED if args.fit_data else 2 * MEASURED)
    args.n_fit = args.n_fit or (FITTED if args.fit_data else None)
    args.batch_size, args.seeds, args.foretell = BATCH, 1, foretold
    if far and (why := trouble()) is not None:
        raise ConnectionError(f"{' and '.join(far)} would come from the hub: {why}. Without it: {LOCAL}")


def foretold(models: Mapping[str, HookedViT], data: ImageData, options: Mapping[str, Any]) -> str:
    """How long the forward passes will take, by one that is measured now."""
    from hooked_vit.loading.placing import seconds_an_image

    (model,) = models.values()
    n_fit = options["fit_data"].n if "fit_data" in options else (data.n or 0) / 2
    n = data.n if "fit_data" in options else n_fit
    # an exchange behind a layer runs the layers behind that one
    each = 1 + options["seeds"] * (model.cfg.n_layers - 1) / 2
    one = seconds_an_image(model)
    total = (n_fit + each * (n or 0)) * one
    long = f"{total / 60:.0f} minutes" if total > 90 else f"{total:.0f} seconds"
    height, width = model.usual_size
    return (
        f"About {long}: {n_fit:.0f} photographs to fit on, one forward pass each, and {n:.0f} to measure on, "
        f"{each:g} each, at {height} × {width} pixels; a pass takes {one:.3f} s here, as measured just now."
    )
