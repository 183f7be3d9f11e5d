"""Is the hook graph the model it claims to be? The original beside ours, and an edit at every hook point."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hooked_vit import architectures
from hooked_vit.config.showing import counted
from hooked_vit.errors import UnsupportedModelError
from hooked_vit.hook_table import layer_of, without_layer
from hooked_vit.loading.checkpoints import load_hf
from hooked_vit.loading.crosscheck import shuffled_both_ways
from hooked_vit.loading.progress import tqdm
from hooked_vit.model import HookedViT

SDPA_BOUND = 3e-6


class Row(NamedTuple):
    """One check: what was compared, the worst number seen, what it had to be, and whether it was."""

    check: str
    worst: float
    bound: str
    ok: bool


@torch.no_grad()
def verify(
    name_or_path: str | Path, *, n_images: int = 2, seed: int = 0, device: str = "cpu", image_size: int | None = None
) -> list[Row]:
    """Check a checkpoint's hook graph against the transformers model it comes from, on random pixels in float32.

    >>> all(row.ok for row in verify("google/vit-base-patch16-224"))  # doctest: +SKIP
    True

    At the native image size and at another one, squares of `image_size` if it is given, on `device`: the output and
    every hidden state, 0.0 apart with transformers' eager attention where the family does not say that it rounds
    otherwise, at most SDPA_BOUND (relative where values exceed 1) with the fused kernel. Then every hook point: an edit
    of it must move the output; and one edit does what nnsight makes it do to the original. What is compared is the
    logits or the image embedding; for a model without a head its pooled features, which are the tokens of the last
    hidden state that the family's classifier reads where the class pools nothing, or by a learned tanh pooler that no
    classifier reads.
    Raises what `HookedViT.from_pretrained` raises for a checkpoint it refuses, and ValueError for a size that patches
    do not cover.
    """
    theirs = load_hf(str(name_or_path)).eval().to(device)
    ours = HookedViT.from_hf(theirs)
    sizes = [ours.cfg.image_size]
    # no family resamples the positions of another native shape, and some resample none
    if image_size is not None:
        ours.layout_for(image_size, image_size)
        sizes += [(image_size, image_size)] if (image_size, image_size) not in sizes else []
    elif ours.cfg.grid[0] == ours.cfg.grid[1] and ours.cfg.positions != "native":
        sizes.append(foreign_size(ours))
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(n_images, ours.cfg.n_channels, *size, generator=generator).to(device) for size in sizes]
    assert ours.cfg.hf_class is not None
    eager_bound = architectures.for_class(ours.cfg.hf_class).eager_bound(ours.cfg)
    rows = [
        row
        for pixels in batches
        for kernel, bound in (("eager", eager_bound), ("sdpa", SDPA_BOUND))
        for row in compare(ours, theirs, pixels, kernel=kernel, bound=bound)
    ]
    rows += causal(ours, batches[0][:1], seed=seed)
    return rows if ours.cfg.n_layers < 2 or n_images < 2 else [*rows, beside_nnsight(ours, theirs, batches[0])]


def beside_nnsight(ours: HookedViT, theirs: nn.Module, pixels: Tensor) -> Row:
    """An edit made with nnsight on the original does what the same edit of ours does; `theirs` is used up."""
    apart = distance(*shuffled_both_ways(ours, theirs, pixels))
    return Row("first token shuffled behind block 0, beside nnsight", apart, f"<= {SDPA_BOUND:g}", apart <= SDPA_BOUND)


def foreign_size(model: HookedViT) -> tuple[int, int]:
    """(height, width) of an image that is not of the native size, and not square."""
    rows, columns = model.cfg.grid
    return (rows + 1) * model.cfg.patch_size, (columns + 2) * model.cfg.patch_size


def compare(ours: HookedViT, theirs: nn.Module, pixels: Tensor, *, kernel: str, bound: float) -> list[Row]:
    """Output and hidden states of both models on the same pixels [b c h w], with one attention kernel."""
    with _kernel(kernel, ours, theirs):
        output, states = reference(ours, theirs, pixels)
        logits, cache = ours.run_with_cache(pixels, names_filter=[*_states(ours)])
    where = f"{pixels.shape[2]} x {pixels.shape[3]} pixels, {kernel}"
    what = (
        "pooled features" if ours.cfg.is_feature_model else "logits" if ours.cfg.outputs == "classes" else "embedding"
    )
    apart = max(distance(cache[name], state) for name, state in zip(_states(ours), states, strict=True))
    limit = f"<= {bound:g}" if bound else "exactly 0"
    return [
        Row(f"{what}, {where}", worst := distance(logits, output), limit, worst <= bound),
        Row(f"all {len(states)} hidden states, {where}", apart, limit, apart <= bound),
    ]


def reference(ours: HookedViT, theirs: nn.Module, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The original's output and its hidden states: entering each block, and after the last one.

    Raises UnsupportedModelError where the class shows neither.
    """
    assert ours.cfg.hf_class is not None
    family = architectures.for_class(ours.cfg.hf_class)
    flags: dict[str, Any] = {"output_hidden_states": True}
    if tuple(pixels.shape[2:]) != ours.cfg.image_size:
        flags |= family.foreign_size_flags
    with _last_norm(theirs) as norm, family.as_read(theirs, pixels) as (forward, more):
        out = forward(pixel_values=pixels, **flags, **more)
    if out.hidden_states is None:
        raise UnsupportedModelError(f"{ours.cfg.hf_class} shows no hidden states, so there is nothing to compare with")
    return _output(ours, theirs, pixels, out, norm), out.hidden_states


def _output(ours: HookedViT, theirs: nn.Module, pixels: Tensor, out: Any, norm: list[Tensor]) -> Tensor:
    if not ours.cfg.is_feature_model:
        return next(v for k in ("logits", "image_embeds", "pooler_output") if (v := out.get(k)) is not None)
    pooler = getattr(theirs, "pooler", None)
    if out.get("pooler_output") is not None and not hasattr(pooler, "dense"):
        return out.pooler_output
    tokens = out.get("last_hidden_state")
    # a pre-training class gives only its own predictions; what they are made of left its last norm
    tokens, layout = norm[-1] if tokens is None else tokens, ours.layout_for(*pixels.shape[2:])
    return torch.cat([tokens[:, layout.where(role)].mean(1) for role in ours.cfg.sources], dim=1)


@contextmanager
def _last_norm(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the output of the norm applied last."""
    seen: list[Tensor] = []
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    handles = [
        norm.register_forward_hook(lambda _m, _args, output: seen.__setitem__(slice(None), [output])) for norm in norms
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _kernel(kernel: str, ours: HookedViT, theirs: Any = None) -> Iterator[None]:
    """Ours, and the original beside it where one is given, with this attention kernel."""
    before = ours.run.attention, theirs and theirs.config._attn_implementation
    ours.set_attention(kernel)
    try:
        if theirs is not None:
            architectures.for_class(type(theirs).__name__).set_kernel(theirs, kernel)
        yield
    finally:
        ours.set_attention(before[0])
        if theirs is not None:
            architectures.for_class(type(theirs).__name__).set_kernel(theirs, before[1])


def _states(model: HookedViT) -> list[str]:
    """Our names for what transformers calls hidden states."""
    n = model.cfg.n_layers
    return [*(f"blocks.{layer}.hook_resid_pre" for layer in range(n)), f"blocks.{n - 1}.hook_resid_post"]


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value where that exceeds 1; infinite for NaN or another shape.

    >>> distance(torch.tensor([0.0, 8.0]), torch.tensor([0.0, 16.0]))
    0.5
    """
    if ours.shape != theirs.shape:
        return float("inf")
    apart = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))
    return apart if math.isfinite(apart) else float("inf")


@torch.no_grad()
def causal(model: HookedViT, pixels: Tensor, *, seed: int = 0) -> list[Row]:
    """For each kind of hook point, the least that an edit of one moved the output, over all layers; 0.0 is a dead hook.

    >>> all(row.ok for row in causal(model, pixels[:1]))  # doctest: +SKIP
    True
    """
    n = model.cfg.n_layers
    moved: dict[str, list[float]] = {}
    with _kernel("eager", model):
        # the stream entering each block, so that an edit costs only what comes behind it
        entering = [model(pixels, stop_at_layer=layer) for layer in range(n + 1)]
        start: int | None = None
        for name, _, _ in tqdm(model.describe_hooks(), desc="an edit at every hook point", leave=False):
            layer = layer_of(name)
            start = layer if layer >= 0 else start if start is None else n
            x = pixels if start is None else entering[start]
            generator = torch.Generator().manual_seed(seed)
            moved.setdefault(without_layer(name), []).append(_effect(model, name, x, start, generator))
    return [
        Row(f"an edit of {kind} moves the output{_places(kind, effects)}", min(effects), "> 0", min(effects) > 0)
        for kind, effects in moved.items()
    ]


def _effect(model: HookedViT, name: str, x: Tensor, start: int | None, generator: torch.Generator) -> float:
    """How far an edit of this hook point moves the output, 0.0 where the hook never fires.

    Compared with a copy put in its place, not with a clean run: where a hook's return value is dropped both are the
    same run, to the bit, while a clean one may differ by the rounding of another kernel.
    """

    def run(edit: Callable[[Tensor], Tensor]) -> Tensor:
        return model.run_with_hooks(x, start_at_layer=start, fwd_hooks=[(name, lambda act, hook: edit(act))])

    # positive and uneven: scales keep their sign, and neither softmax nor layer norm takes it out again
    def nudged(act: Tensor) -> Tensor:
        return act + 1 + 3 * torch.rand(act.shape, generator=generator).to(act)

    effect = float((run(nudged) - run(torch.clone)).abs().max())
    return effect if math.isfinite(effect) else 0.0


def _places(kind: str, effects: list[float]) -> str:
    return f", in each of {counted(len(effects), 'block')}" if kind.startswith("blocks.") else ""
