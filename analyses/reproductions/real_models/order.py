"""Whether trained readouts come in the published order, and what may be blamed where they do not."""

from __future__ import annotations

import pandas as pd

from analyses.running.results import Result
from hooked_vit.config.showing import counted


def order_found(result: Result) -> list[str]:
    """Sentences on a result of `random-readouts`: the order by layer, then budget, rates and closed forms.

    A result without trained readouts has none.
    """
    frame = result.frame
    ahead = frame[(frame.measure == "difference") & (frame["mode"] == "replace - null")]
    if ahead.empty:
        return []
    trained = frame[(frame.split == "test") & (frame.measure == "accuracy") & (frame.status != "closed form")]
    lines = [f"Random token minus null, both trained: {'; '.join(_at(row) for _, row in ahead.iterrows())}."]
    epochs = int(frame[frame.measure == "validation_accuracy"].groupby(["layer", "mode", "seed"]).epoch.max().max())
    most, n = result.meta["training"]["epochs"], len(trained)
    ended = int((trained.status == "unsettled: ended by its epochs").sum())
    budget = f"{counted(ended, 'training')} of {n} used up the {most} epochs"
    lines.append(
        f"{budget}: the budget matters." if ended else f"All stopped by themselves, within {epochs} of {most} epochs."
    )
    rates = frame[frame.measure == "learning_rate"].value
    tried = result.meta["training"]["lr"]
    edge = int((rates == max(tried)).sum() + (rates == min(tried)).sum())
    lines.append(
        f"Of the learning rates {', '.join(f'{rate:g}' for rate in tried)} the lowest or highest was best in {edge}."
    )
    below = int((trained.status == "unsettled: below its closed form").sum())
    fit = counted(result.meta["fit_data"]["fit"], "image")
    lines.append(
        f"{below} of {n} read less than a closed form they could have come to: on {fit} these measure the training, "
        "and not the block."
        if below
        else "None reads less than a closed form it could have come to."
    )
    return lines


def _at(row: pd.Series) -> str:
    clear = "ahead" if row.low > 0 else "behind" if row.high < 0 else "neither"
    settled = "" if row.status == "settled" else ", not settled"
    return f"layer {row.layer} {row.value:+.3f} [{row.low:+.3f}, {row.high:+.3f}] ({clear}{settled})"
