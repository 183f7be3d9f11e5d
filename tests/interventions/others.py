"""The same edit of a transformers model made twice without us: with plain torch, and with nnsight.

An edit is (place, layer, function). Places are named here once, by what is computed there, so that a test
writes the function a user of those tools would write: literal token positions, tensors in transformers' layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hooked_vit.loading.crosscheck import import_nnsight

Run = Callable[..., Tensor]


class Edit(NamedTuple):
    """One function on one tensor; `layer` is None outside the blocks."""

    place: str
    layer: int | None
    function: Callable[[Tensor], Tensor]


# In the order a forward pass reaches them, which nnsight insists on.
BEFORE = (
    "pixels",  # what the patch embedding reads                            [b c h w]
    "embeddings",  # tokens with their positions, before CLIP's norm       [b t d]
)
INSIDE = (
    "resid_pre",  # what enters the block                                  [b t d]
    "q",  # heads side by side, like k, v and z                            [b t d]
    "k",
    "v",
    "bias",  # what BEiT adds to the scores                                [1 h t t]
    "scores",  # before the softmax                                        [b h t t]
    "pattern",  # after the softmax                                        [b h t t]
    "z",  # the heads' outputs                                             [b t d]
    "attn",  # output of attention, before LayerScale                      [b t d]
    "pre",  # the neurons before their nonlinearity                        [b t d_mlp]
    "post",  # the neurons behind it                                       [b t d_mlp]
    "mlp",  # output of the MLP, before LayerScale                         [b t d]
    "resid_post",  # what leaves the block                                 [b t d]
)
AFTER = (
    "pooled",  # what the classifier reads                                 [b p]
    "pooled_dist",  # what DeiT's second classifier reads                  [b d]
    "logits",  # what the classifier says                                  [b c]
)


class Anatomy:
    """Where transformers keeps these places, as paths from the root of a model."""

    def __init__(self, hf: nn.Module) -> None:
        modules = dict(hf.named_modules())
        self.blocks = next(name for name, module in modules.items() if isinstance(module, nn.ModuleList))
        self.n_layers = len(modules[self.blocks])
        root = f"{self.blocks}.0."
        inside = {name.removeprefix(root) for name in modules if name.startswith(root)}
        self.attention = attention = "attention" if "attention" in inside else "self_attn"
        out = "o_proj" if f"{attention}.o_proj" in inside else "out_proj"
        head = "classifier" if "classifier" in modules else "cls_classifier"
        # (module, which of its sides)
        self.outside = {
            "pixels": (next(name for name, module in modules.items() if isinstance(module, nn.Conv2d)), "input"),
            "embeddings": (next(name for name in modules if name.endswith("embeddings")), "output"),
            "pooled": (head, "input"),
            "pooled_dist": ("distillation_classifier", "input"),
            "logits": (head, "output"),
        }
        self.inside = {
            "resid_pre": ("", "input"),
            "q": (f"{attention}.q_proj", "output"),
            "k": (f"{attention}.k_proj", "output"),
            "v": (f"{attention}.v_proj", "output"),
            "z": (f"{attention}.{out}", "input"),
            "attn": (attention, "output"),
            "pre": ("mlp.fc1", "output"),
            "post": ("mlp.fc2", "input"),
            "mlp": ("mlp", "output"),
            "resid_post": ("", "output"),
        }

    def where(self, edit: Edit) -> tuple[str, str]:
        """The module an edit belongs to, and the side of it; what is between the two sides goes by its own name."""
        if edit.place in self.outside:
            return self.outside[edit.place]
        inside, side = self.inside.get(edit.place, (self.attention, edit.place))
        return f"{self.blocks}.{edit.layer}.{inside}".rstrip("."), side

    def when(self, edit: Edit) -> tuple[int, int]:
        """Sorts edits into the order of a forward pass."""
        for part, layer in ((BEFORE, -1), (INSIDE, edit.layer), (AFTER, self.n_layers)):
            if edit.place in part:
                return layer, part.index(edit.place)
        raise KeyError(edit.place)


class EditedSoftmax(TorchFunctionMode):
    """No module owns the softmax of attention, so plain torch sees it as the n-th call of a function."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        super().__init__()
        self.edits, self.n_calls = edits, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.softmax:
            return func(*args, **(kwargs or {}))
        here = [e for e in self.edits if e.layer == self.n_calls]
        self.n_calls += 1
        scores, *rest = args
        for edit in (e for e in here if e.place == "scores"):
            scores = edit.function(scores)
        pattern = func(scores, *rest, **(kwargs or {}))
        for edit in (e for e in here if e.place == "pattern"):
            pattern = edit.function(pattern)
        return pattern


def with_hooks(hf: nn.Module, x: Tensor, edits: Sequence[Edit], read: Run) -> Tensor:
    """The output under edits made with torch's own hooks."""
    anatomy = Anatomy(hf)

    def attach(edit: Edit) -> Any:
        path, side = anatomy.where(edit)
        module = hf.get_submodule(path)
        if side == "bias":
            return module.register_forward_pre_hook(
                lambda _, args, kw: (args, {**kw, "attention_mask": edit.function(kw["attention_mask"])}),
                with_kwargs=True,
            )
        if side == "input":
            return module.register_forward_pre_hook(lambda _, args: (edit.function(args[0]), *args[1:]))
        return module.register_forward_hook(lambda _, args, out: on_first(edit.function, out))

    softmax = [e for e in edits if e.place in ("scores", "pattern")]
    with ExitStack() as stack, torch.no_grad():
        for edit in edits:
            if edit not in softmax:
                stack.callback(attach(edit).remove)
        if softmax:
            stack.enter_context(EditedSoftmax(softmax))
        return read(hf(x))


def on_first(function: Callable[[Tensor], Tensor], out: Any) -> Any:
    """Attention returns (output, weights), everything else a tensor."""
    return (function(out[0]), *out[1:]) if isinstance(out, tuple) else function(out)


def with_nnsight(hf: nn.Module, x: Tensor, edits: Sequence[Edit], read: Run) -> Tensor:
    """The output under edits made in an nnsight trace. nnsight takes the model over: give it one of its own."""
    nnsight = import_nnsight()
    anatomy = Anatomy(hf)
    model = nnsight.NNsight(hf)
    todo = [(*anatomy.where(edit), edit.function) for edit in sorted(edits, key=anatomy.when)]
    with torch.no_grad(), model.trace(x):
        for path, side, function in todo:
            here = model.get(path)
            if side == "bias":
                args, kw = here.inputs
                here.inputs = (args, {**kw, "attention_mask": function(kw["attention_mask"])})
            elif side in ("scores", "pattern"):
                softmax = here.source.attention_interface_1.source.nn_functional_softmax_0
                if side == "scores":
                    softmax.input = function(softmax.input)
                else:
                    softmax.output = function(softmax.output)
            elif side == "input":
                here.input = function(here.input)
            else:
                here.output = on_first(function, here.output)
        logits = nnsight.save(read(model.output))
    return logits
