"""How a run begins: what may enter, which tokens it holds, whose turn it is, and what torch may make of the model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor

from hooked_vit.components.sizes import Sizes
from hooked_vit.components.watching import watched
from hooked_vit.config.numbers import check_autocast, dtype_of, multiplying
from hooked_vit.tokens import RECOMPUTED, TokenLayout


class Running(Sizes):
    """The beginning of every run, as a mixin of the model."""

    hook_points: Callable[[], Any]

    @contextmanager
    def running(self, layout: TokenLayout) -> Iterator[None]:
        """Run parts of the graph by hand, with these tokens; what was running before comes back afterwards.

        Raises RuntimeError where another thread runs the model, or has hooks attached to it.
        """
        with self.run.held(), multiplying(self.run.autocast, self):
            before, self.run.tokens = self.run.tokens, layout
            self.run.depth += 1
            try:
                yield
            finally:
                self.run.depth -= 1
                self.run.tokens = before

    def set_autocast(self, numbers: str | torch.dtype | None) -> None:
        """Take products in bfloat16 or float16; weights, norms, softmax and residual stream stay float32. None ends it.

        >>> model.set_autocast("bfloat16")  # doctest: +SKIP

        It is `torch.autocast` around every run and nothing else: what hooks, probes and analyses multiply is as before.
        Raises ValueError for other numbers, for weights that are no float32, and for a device without them.
        """
        found, weight = dtype_of(numbers) if numbers is not None else None, next(self.parameters())
        if found is not None:
            check_autocast(weight.device, found, weight.dtype)
        with self.run.held():
            self.run.autocast = found

    def _hooked(self) -> bool:
        """True where somebody listens and something may be compiled: compiled code would not ask again."""
        return "torch._dynamo" in sys.modules and any(watched(point) for point in self.hook_points())

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise NotImplementedError(
            "DataParallel runs replicas of one model in threads, and the replicas would share its hooks and tokens; "
            "use DistributedDataParallel, or one deepcopy(model).to(device) per device"
        )

    def gradient_checkpointing_enable(self, *args: Any, **kw: Any) -> NoReturn:
        """Refused: what is run again in the backward pass would call its hooks again, and draw anew."""
        raise NotImplementedError(RECOMPUTED)

    def _depth(self, layer: int, what: str) -> int:
        """A layer as a depth 0..n_layers, negative from the end."""
        n = self.cfg.n_layers
        if not -n <= layer <= n:
            raise ValueError(f"{what} is 0 to {n}, or negative from the end: the model has {n} layers, got {layer}")
        return layer % n if layer < 0 else layer

    def _layout_of(self, x: Any, tokens: TokenLayout | None) -> TokenLayout:
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[-1] != self.cfg.d_model:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"a resumed stream is [batch, tokens, {self.cfg.d_model}], got {got}")
        native, n = self.run.native, x.shape[1]
        known: TokenLayout | None = tokens if tokens is not None else getattr(x, "_tokens", None)
        layout = native if known is None else known
        if layout.n_tokens != n:
            raise ValueError(
                f"this stream has {n} tokens and the model's native layout {layout.n_tokens}; " + SAY_TOKENS
                if known is None
                else f"this stream has {n} tokens, and its layout {layout.n_tokens}; " + SAY_TOKENS
            )
        if known is None and self.run.lookalikes:
            raise ValueError(
                f"arithmetic, a copy or a slice has made this stream forget which tokens it holds, and runs of this "
                f"model held {n} native ones and {n} others, {self.run.lookalikes[0]}; " + SAY_TOKENS
            )
        if layout.ragged and len(layout.codes) != len(x):
            raise ValueError(f"this stream holds {len(x)} images, and its layout the tokens of {len(layout.codes)}")
        return layout


SAY_TOKENS = "say which they are: tokens=model.layout_for(height, width), or the layout of the run it came from"


def leave_alone() -> None:
    """Called by a function that is not to be compiled, for it asks who listens; what it calls may be.

    Raises NotImplementedError in torch.export, whose graph has no place for hooks.
    """
    if torch.compiler.is_exporting():
        raise NotImplementedError("an exported graph has no hooks; export the model of transformers this one came from")
    if torch.compiler.is_dynamo_compiling():
        torch._dynamo.skip_frame("a run asks each time who listens; what it calls is compiled: leave out fullgraph")


def plainly(function: Callable) -> Callable:
    """The same function, left alone by a compiler at work."""
    return torch.compiler.disable(function) if "torch._dynamo" in sys.modules else function


def as_python(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function, nothing in it compiled, so that every hook acts."""

    def run(*args: Any) -> Tensor:
        with torch.compiler.set_stance("force_eager"):
            return function(*args)

    return torch.compiler.disable(run)


@contextmanager
def uncompiled() -> Iterator[None]:
    """While hooks are attached nothing is compiled, and nothing compiled is run: every hook acts.

    Raises RuntimeError inside a compiled function.
    """
    if torch.compiler.is_dynamo_compiling():
        raise RuntimeError("hooks are attached outside of compiled functions; take torch.compile off this one")
    with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
        yield


class NumberedImages:
    """A model as TransformerLens' tools know models: what they put in are whole numbers, [images, positions].

    >>> numbered = NumberedImages(model, pixels)  # doctest: +SKIP
    >>> patching.get_act_patch_resid_pre(numbered, numbered.inputs, clean_cache, metric)  # doctest: +SKIP

    Pixels have no axis of positions, and these tools count positions along the last axis of what they put in. So row i
    of `inputs` holds the number of image i, once per token; the run is that of these images. Everything else is the
    model's. Raises ValueError for inputs that are no such rows.
    """

    def __init__(self, model: Any, pixels: Tensor) -> None:
        self._model, self._pixels = model, pixels
        self.cfg = _LensConfig(model.cfg, pixels.device)
        n_tokens = model.layout_for(*pixels.shape[2:]).n_tokens
        self.inputs = torch.arange(len(pixels), device=pixels.device)[:, None].repeat(1, n_tokens)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)

    def __call__(self, inputs: Tensor, *args: Any, **kw: Any) -> Any:
        """The model's output for the images of these rows."""
        return self._model(self._images(inputs), *args, **kw)

    def run_with_hooks(self, inputs: Tensor, *args: Any, **kw: Any) -> Any:
        """The model's, for the images of these rows."""
        return self._model.run_with_hooks(self._images(inputs), *args, **kw)

    def run_with_cache(self, inputs: Tensor, *args: Any, **kw: Any) -> Any:
        """The model's, for the images of these rows."""
        return self._model.run_with_cache(self._images(inputs), *args, **kw)

    def to_tokens(self, inputs: Any, *args: Any, **kw: Any) -> Any:
        """What is put in is numbered already."""
        return inputs

    def _images(self, inputs: Tensor) -> Tensor:
        if inputs.shape[1:] != self.inputs.shape[1:] or (inputs != inputs[:, :1]).any():
            raise ValueError(
                f"what goes in are rows of .inputs, [images, {self.inputs.shape[1]}] with one image's number per row; "
                f"got {list(inputs.shape)}. A model with pixels is the one inside"
            )
        return self._pixels[inputs[:, 0]]


class _LensConfig:
    """A config with the two things TransformerLens' tools ask besides."""

    n_key_value_heads = None

    def __init__(self, cfg: Any, device: torch.device) -> None:
        self._cfg, self.device = cfg, device

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_cfg"], name)
