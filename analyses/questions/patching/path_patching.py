"""Does one component speak to another directly? Path patching, a sender's activation along one path only.

What the receiver reads is changed as if the sender alone had come from the donor run, everything in between kept as it
was; then the network goes on from the receiver. Wang et al. 2023 (IOI), Goldowsky-Dill et al. 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analyses.questions.patching.figures import senders_figure
from analyses.questions.patching.pair_tally import Tally, dropped_notes
from analyses.questions.patching.patch_sites import pair_pixels
from analyses.questions.patching.patched_runs import refuse_hooks
from analyses.questions.patching.patching_metrics import (
    EPS,
    MetricLike,
    as_metrics,
    check_answers,
    check_classes,
    reference,
)
from analyses.questions.patching.paths import Receiver, Sender, Wires
from analyses.running.registry import analysis
from analyses.running.results import Result
from hooked_vit import HookedViT
from hooked_vit.loading.progress import tqdm
from interventions.sweep import FOLD_TOKENS


@analysis(figure=senders_figure)
@torch.no_grad()
def path_patching(
    model: HookedViT, clean: Float[Tensor, "b c h w"] | Sequence[Any],
    corrupt: Float[Tensor, "_ _ _ _"] | Sequence[Any], *,
    receiver: Receiver | Sequence[Receiver], senders: str | Sequence[Sender | tuple[Sender, ...]] = "heads",
    direction: str = "noise", mlps: str = "frozen", metric: MetricLike | Sequence[MetricLike] = "recovery",
    classes: tuple[Int[Tensor, "_"], Int[Tensor, "_"]] | None = None, eps: float = EPS, seed: int = 0,
    batch_size: int = 32, fold_tokens: int = FOLD_TOKENS,
) -> Result:  # fmt: skip
    """How much of the difference between two images goes from each sender straight to a receiver?

    >>> path_patching(model, clean, corrupt, receiver=Receiver("logits"))  # every head's own path  # doctest: +SKIP
    >>> path_patching(model, clean, corrupt, receiver=Receiver("k", 5, heads=2, tokens="cls"))  # doctest: +SKIP

    `senders`: "heads" (every head in front of the receiver), "components" (the embedding, every attention and MLP
    output), or a list of `Sender`, a tuple of them sending together. `receiver`: one `Receiver`, or several that
    receive together, such as the keys and values of a head. With direction "noise" the clean run hears what the sender
    says in the corrupt one, with "denoise" the other way round. In between attention is frozen, and MLPs too
    (`mlps="frozen"`: the direct path alone, Goldowsky-Dill et al.) or not (`"recomputed"`: Wang et al.).

    One row per sender and metric, with columns as `Tally.rows` explains; a recovery of 1 is the whole difference
    between the two runs. Raises ValueError for pairs of different shape, a layer, head or token there is not, and a
    sender that is not in front of the receiver.
    """
    clean, corrupt = pair_pixels(model, clean, corrupt)
    check_answers(model, as_metrics(metric))
    check_classes(classes, len(clean))
    refuse_hooks(model)
    for value, known in ((direction, ("denoise", "noise")), (mlps, ("frozen", "recomputed"))):
        if value not in known:
            raise ValueError(f"one of {', '.join(known)} is needed here; got {value!r}")
    layout = model.layout_for(*clean.shape[2:])
    receivers = [r.on(model, layout) for r in ([receiver] if isinstance(receiver, Receiver) else receiver)]
    sent = [tuple(s.on(model, layout) for s in group) for group in _groups(model, senders, receivers)]
    _check_paths(sent, receivers)
    tally = Tally(as_metrics(metric), eps)
    base, donor = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
    fold = max(1, min(len(sent), fold_tokens // (min(batch_size, len(clean)) * layout.n_tokens)))
    starts = range(0, len(clean), batch_size)
    bar = tqdm(total=len(starts) * len(sent), desc="paths", delay=2, leave=False)
    for images in (slice(i, i + batch_size) for i in starts):
        wires = Wires(model, base[images], donor[images], sent, receivers, fold, images, recompute=mlps == "recomputed")
        part = None if classes is None else (classes[0][images], classes[1][images])
        for i, (logits, base_logits, donor_logits) in enumerate(wires.runs()):
            tally.add(i, logits, reference(direction, base_logits, donor_logits, part))
            bar.update()
    bar.close()
    rows = [
        {
            "sender": " + ".join(s.name for s in sent[i]),
            "site": sent[i][0].site if len(sent[i]) == 1 else "several",
            "layer": sent[i][0].layer if len(sent[i]) == 1 and sent[i][0].site != "embed" else None,
            "head": sent[i][0].head if len(sent[i]) == 1 else None,
            "receiver": " + ".join(r.name for r in receivers),
            "direction": direction,
            **measured,
        }
        for i, measured in tally.rows()
    ]
    frame = pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})
    meta = {
        "model": model.cfg.name or model.cfg.architecture,
        "n_pairs": len(clean),
        "mlps": mlps,
        "metrics": [m.name for m in tally.metrics],
        "classes": "the model's predictions" if classes is None else "given",
        "eps": eps,
        "seed": seed,
        "notes": dropped_notes(frame),
    }
    return Result(frame, meta)


def all_components(model: HookedViT) -> list[Sender]:
    """Everything that adds to the residual stream: sent together to the logits, they are the whole donor run."""
    branches = [Sender(site, layer) for layer in range(model.cfg.n_layers) for site in ("attn_out", "mlp_out")]
    return [Sender("embed"), *branches]


def _groups(model: HookedViT, senders: Any, receivers: Sequence[Receiver]) -> list[tuple[Sender, ...]]:
    """What sends together; by name only those senders that some receiver can hear."""
    if not isinstance(senders, str):
        return [(s,) if isinstance(s, Sender) else tuple(s) for s in senders]
    if senders not in ("heads", "components"):
        raise ValueError(f'senders are "heads", "components" or a list of Sender; got {senders!r}')
    found = all_components(model)
    if senders == "heads":
        attention = [s for s in found if s.site == "attn_out"]
        found = [replace(s, heads=h) for s in attention for h in range(model.cfg.n_heads)]
    reach = max(receiver.reads_at for receiver in receivers)
    return [(sender,) for sender in found if sender.writes_at <= reach]


def _check_paths(sent: Sequence[tuple[Sender, ...]], receivers: Sequence[Receiver]) -> None:
    if not sent or not receivers or not all(sent):
        raise ValueError("a path needs at least one sender and one receiver")
    for sender in {s for group in sent for s in group}:
        if all(sender.writes_at > receiver.reads_at for receiver in receivers):
            heard_by = " and ".join(r.name for r in receivers)
            raise ValueError(f"a sender lies in front of its receiver; {sender.name} is behind {heard_by}")
    streams = [receiver for receiver in receivers if receiver.is_stream]
    for stream in streams:
        if heard_twice := [r.name for r in receivers if r is not stream and r.reads_at >= stream.reads_at]:
            raise ValueError(
                f"{stream.name} is everything that reads the stream from there on, {', '.join(heard_twice)} included; "
                "name it alone or leave it out"
            )


__all__ = ["Receiver", "Sender", "all_components", "path_patching"]
