"""A hook graph in the place of the vision tower it was read from, inside a larger model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from hooked_vit import architectures
from hooked_vit.errors import UnsupportedModelError
from hooked_vit.loading.described import read_config
from hooked_vit.model import HookedViT

SAME = ("hf_class", "d_model", "n_layers", "n_heads", "image_size", "patch_size")


@contextmanager
def in_place(whole: nn.Module, path: str, model: HookedViT) -> Iterator[nn.Module]:
    """Run a larger model on this hook graph instead of its own vision tower, as long as the `with` lasts.

    >>> model = HookedViT.from_hf(vlm.model.vision_tower)  # doctest: +SKIP
    >>> with in_place(vlm, "model.vision_tower", model), apply(model, shuffle_cls(3)):  # doctest: +SKIP
    ...     answer = vlm.generate(**inputs)

    Hooks and interventions on `model` act on whatever the larger model reads: the hidden state of any depth, the last
    hidden state, the pooled output. It decides what that is; LLaVA reads the stream entering the last block, so that an
    edit inside the last block changes nothing. `path` names the tower as `named_modules` does. Without edits the
    answer is that of the original tower.
    Raises UnsupportedModelError for a tower without a graph, ValueError for a model that was not read from a tower of
    this class and size, or that has a head of its own.
    """
    parent, _, name = path.rpartition(".")
    original = whole.get_submodule(path)
    _require_same(original, path, model)
    home = whole.get_submodule(parent)
    setattr(home, name, Tower(original, model))
    try:
        yield whole
    finally:
        setattr(home, name, original)


def _require_same(original: nn.Module, path: str, model: HookedViT) -> None:
    hf_class = type(original).__name__
    cfg = read_config(architectures.for_class(hf_class).config_of(original), hf_class)
    if not (cfg.is_feature_model and model.cfg.is_feature_model):
        raise ValueError(f"a tower hands out features, and a {model.cfg.hf_class} has a head; read it from {path!r}")
    other = {field: (getattr(cfg, field), getattr(model.cfg, field)) for field in SAME}
    if different := [f"{field} {theirs}, not {ours}" for field, (theirs, ours) in other.items() if theirs != ours]:
        raise ValueError(f"this model was read from another tower than {path!r}, which has {', '.join(different)}")


class Tower(nn.Module):
    """What the larger model finds where its tower was: the same outputs, and the original's every other attribute."""

    def __init__(self, original: Any, model: HookedViT) -> None:
        super().__init__()
        self.model = model
        # in a tuple, so that the weights do not count twice
        self._original = (original,)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._original[0], name)

    def forward(
        self,
        pixel_values: Float[Tensor, "b c h w"],
        output_hidden_states: Any = None,
        return_dict: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        **more: Any,
    ) -> Any:
        """The outputs of the original's class, with every hidden state.

        Raises UnsupportedModelError for an argument that the graph has no meaning for.
        """
        from transformers import modeling_outputs

        if meant := {name: value for name, value in more.items() if value is not None and value is not False}:
            raise UnsupportedModelError(
                f"the larger model gives its tower {', '.join(meant)}, which the graph has no place for; attention "
                "patterns are what model.run_with_cache or a hook on attn.hook_pattern shows"
            )
        states, normed, pooled = self._run(pixel_values)
        original, cfg = self._original[0], self.model.cfg
        assert cfg.hf_class is not None
        raw = cfg.final_norm != "tokens" or architectures.for_class(cfg.hf_class).unnormed_tokens
        last = states[-1] if raw else normed
        if hasattr(getattr(original, "pooler", None), "dense"):  # a learned pooler stands behind the graph
            pooled = original.pooler(last)
        out = modeling_outputs.BaseModelOutputWithPooling(
            last_hidden_state=last, pooler_output=pooled, hidden_states=states
        )
        return out.to_tuple() if return_dict is False else out

    def _run(self, pixels: Tensor) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """The stream at every depth as hooks left it, what the final norm made of it, and the pooled features."""
        model, kept, normed = self.model, {}, []
        last = model.cfg.n_layers - 1
        names = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(last + 1)), f"blocks.{last}.hook_resid_post"]

        def keep(act: Tensor, hook: Any) -> None:
            kept[hook.name] = act

        seen = model.ln_final.register_forward_hook(lambda _module, _args, output: normed.append(output))
        try:
            with model.hooks([(name, keep) for name in names]):
                pooled = model(pixels)
        finally:
            seen.remove()
        return tuple(kept[name] for name in names), normed[-1], pooled
