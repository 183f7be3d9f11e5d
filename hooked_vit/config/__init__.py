"""The one description of a model: every field is read by the graph, none is family lore."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn, get_args

from hooked_vit.config.checks import ELSEWHERE, MOST_PARAMETERS, wrong_values
from hooked_vit.config.showing import Displayed, counted, one_line, told

Role = Literal["cls", "dist", "registers", "patches", "inserted"]


@dataclass(frozen=True, kw_only=True)
class RotaryPositions:
    """How queries and keys are turned by where their patch stands (Su et al. 2021, here over rows and columns).

    Half of the frequencies of a head, falling from 1 towards 1 / `base`, turn by the row and half by the column;
    `columns_first` is their order. What is counted is the centre of a row or column between -1 and 1, in whole turns;
    or with `indices` its number, plus `offset`, stretched to `reference` (rows, columns) where that is given.
    `interleaved` pairs neighbouring dimensions of a head; otherwise partners are half a head apart. With `learned`
    every head of every block has learned frequencies instead, which turn each pair by row and column together.
    """

    base: float = 100.0
    interleaved: bool = False
    columns_first: bool = False
    indices: bool = False
    offset: float = 0.0
    reference: tuple[int, int] | None = None
    learned: bool = False


@dataclass(frozen=True, kw_only=True)
class ProbePooling:
    """How a learned probe gathers what the readout reads (Zhai et al. 2023): in heads, beside which an MLP may stand.

    Without `query` the probe is its own query. `bias` is that of keys and values. Without `d_mlp` there is no MLP, nor
    the norm in front of it.
    """

    n_heads: int
    d_mlp: int | None
    query: bool = True
    bias: bool = True


@dataclass(frozen=True, kw_only=True)
class ViTConfig(Displayed):
    """Everything the hook graph needs to know; frozen, so that a model cannot drift from its description.

    >>> ViTConfig(d_model=32, n_layers=2, n_heads=4, d_mlp=64, image_size=(32, 32), patch_size=8, n_classes=10).d_head
    8

    Sizes are pixels (`image_size` is (height, width)) or units (`d_*`, `n_*`). Of an image whose size is no multiple of
    `patch_size` the last rows and columns belong to no patch. The readout is part of the description:
    `sources` are the token roles it reads (a role of many tokens is averaged), `heads` the linear heads and the
    positions in `sources` each one reads; several heads are averaged. Without heads the model returns its pooled
    features, and `is_feature_model` says so. With `post_norm` a block adds norm(branch(x)) to the stream instead of
    branch(norm(x)); `*_inner_norm` is one more norm, in front of a branch's output matrix. `positionless` are the
    roles in front of the patches that no position embedding is added to.
    `positions` says how a position embedding comes to another grid: it is resampled, it never does, or it is computed.
    With `attention_pool` a learned probe attends to the tokens of all sources in place of their means. With `unit_norm`
    the head reads what was pooled divided by its length, behind a projection to `d_embed` numbers where that is given.
    `readout_set` says that `set_readout_` chose what is read, and not the checkpoint; `head_set`, in words, whose the
    head is where it is not the checkpoint's.

    Raises ValueError for a combination no graph can have, for a field of another type or out of RANGES, and for more
    than MOST_PARAMETERS.
    """

    d_model: int
    n_layers: int
    n_heads: int
    d_mlp: int
    image_size: tuple[int, int]
    patch_size: int
    n_channels: int = 3
    act_fn: str = "gelu"
    gated_mlp: bool = False
    norm: Literal["layer", "rms"] = "layer"
    eps: float = 1e-6
    layer_scale: bool = False
    post_norm: bool = False
    attn_inner_norm: bool = False
    mlp_inner_norm: bool = False
    q_bias: bool = True
    k_bias: bool = True
    v_bias: bool = True
    o_bias: bool = True
    mlp_bias: bool = True
    patch_bias: bool = True
    patch_norm: bool = False

    has_cls: bool = True
    has_dist: bool = False
    n_registers: int = 0
    absolute_positions: bool = True
    positions: Literal["resampled", "native", "sincos"] = "resampled"
    positionless: tuple[Role, ...] = ("registers",)
    position_antialias: bool = False
    position_float32: bool = False
    ln_pre: bool = False
    rel_pos_shared: bool = False
    rel_pos_per_layer: bool = False
    rotary: RotaryPositions | None = None

    final_norm: Literal["tokens", "pooled", "none"] = "tokens"
    sources: tuple[Role, ...] = ("cls",)
    heads: tuple[tuple[str, tuple[int, ...]], ...] = (("head", (0,)),)
    attention_pool: ProbePooling | None = None
    unit_norm: bool = False
    d_embed: int | None = None
    head_bias: bool = True
    n_classes: int | None = None
    outputs: Literal["classes", "embedding"] = "classes"
    class_names: tuple[str, ...] | None = field(default=None, repr=False)
    readout_set: bool = False
    head_set: str | None = None

    architecture: str = "custom"
    hf_class: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if wrong := next(wrong_values(self, get_args(Role)), None):
            raise ValueError(wrong)
        rules = [
            (self.d_model % self.n_heads == 0, f"d_model {self.d_model} must be a multiple of n_heads {self.n_heads}"),
            (
                all(s >= self.patch_size for s in self.image_size),
                f"an image of {self.image_size} pixels holds no patch of {self.patch_size}",
            ),
            (
                not (self.rel_pos_shared or self.rel_pos_per_layer) or self.image_size[0] == self.image_size[1],
                f"a relative position bias needs a square native image, got {self.image_size}: "
                "transformers reads the table of another shape scrambled",
            ),
            (
                not (self.rel_pos_shared or self.rel_pos_per_layer) or self.prefix == ("cls",),
                f"a relative position bias is defined for a CLS token and patches, got the prefix {self.prefix}",
            ),
            (
                self.rotary is None or self.d_head % 4 == 0,
                f"rotary positions turn pairs of dimensions by row and by column: d_head {self.d_head} must be a "
                "multiple of 4",
            ),
            (
                self.positions != "sincos" or (not self.prefix and self.d_model % 4 == 0),
                "sines and cosines of rows and columns are defined for patches alone and a d_model that is a multiple "
                f"of 4, got the prefix {self.prefix} and {self.d_model}",
            ),
            (
                self.mlp_bias or self.norm == "rms",
                "an MLP without biases stands behind RMS norms, which have no offset to fold into them",
            ),
            (bool(self.sources), "the readout needs at least one source"),
            (
                all(s == "patches" or s in self.prefix for s in self.sources),
                f"the readout reads {self.sources}, the tokens are {(*self.prefix, 'patches')}",
            ),
            (
                (self.n_classes is None) == (not self.heads),
                f"n_classes {self.n_classes} and heads {self.heads} must come together; a feature model has neither",
            ),
            (
                all(0 <= i < self.n_pooled for _, read in self.heads for i in read),
                f"heads {self.heads} read sources that do not exist, there are {self.n_pooled}",
            ),
            (
                self.attention_pool is None or self.final_norm != "pooled",
                f"a probe attends to tokens behind the final norm, got final_norm={self.final_norm!r}",
            ),
            (
                self.attention_pool is None or self.d_model % self.attention_pool.n_heads == 0,
                f"d_model {self.d_model} must be a multiple of the heads of the attention pool: {self.attention_pool}",
            ),
            (
                not self.unit_norm or [read for _, read in self.heads] == [tuple(range(self.n_pooled))],
                f"a readout of unit length has one head over all its sources, got {self.heads}",
            ),
            (
                self.d_embed is None or self.unit_norm,
                f"a projection to {self.d_embed} numbers without unit_norm is part of the head; multiply them",
            ),
            (
                self.class_names is None or len(self.class_names) == self.n_classes,
                f"class_names holds {len(self.class_names or ())}, n_classes is {self.n_classes}",
            ),
        ]
        for holds, message in rules:
            if not holds:
                raise ValueError(message)
        if (n := self.n_parameters) > MOST_PARAMETERS:
            raise ValueError(f"a model has at most {MOST_PARAMETERS:,} parameters, this config describes {n:,}")

    def __repr__(self) -> str:
        pixels = "{} x {} pixels in patches of {}".format(*self.image_size, self.patch_size)
        sizes = f"{counted(self.n_layers, 'layer')}, {counted(self.n_heads, 'head')}, d_model {self.d_model}, {pixels}"
        return one_line(f"ViTConfig({self.name or self.architecture}: {sizes})")

    def _rows(self) -> dict[str, object]:
        return told(self)

    def __getattr__(self, name: str) -> NoReturn:
        hint = f"; {ELSEWHERE[name]}" if name in ELSEWHERE else ""
        raise AttributeError(f"a ViTConfig says nothing of {name!r}{hint}")

    def replace(self, **changes: Any) -> ViTConfig:
        """A copy with some fields changed."""
        return replace(self, **changes)

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches at the native image size."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def n_patches(self) -> int:
        """Patches at the native image size; those of other images: `model.layout_for(height, width).n_patches`."""
        return self.grid[0] * self.grid[1]

    @property
    def prefix(self) -> tuple[Role, ...]:
        """The role of every token in front of the patches."""
        roles: list[Role] = []
        roles += ["cls"] if self.has_cls else []
        roles += ["dist"] if self.has_dist else []
        roles += ["registers"] * self.n_registers
        return tuple(roles)

    @property
    def n_positions(self) -> int:
        """Rows of the position embedding."""
        return self.n_patches + sum(role not in self.positionless for role in self.prefix)

    @property
    def n_parameters(self) -> int:
        """How many numbers there are to learn, about: biases and norms are not counted exactly."""
        d, offsets = self.d_model, math.prod(2 * side - 1 for side in self.grid) + 3
        tables = self.rel_pos_shared + self.n_layers * self.rel_pos_per_layer
        pool = self.attention_pool
        return (
            self.n_layers * d * (4 * d + (2 + self.gated_mlp) * self.d_mlp)
            + d * self.n_channels * self.patch_size**2
            + d * (len(self.prefix) + self.absolute_positions * (self.positions != "sincos") * self.n_positions)
            + sum(self.d_embed or len(read) * d for _, read in self.heads) * (self.n_classes or 0)
            + (self.d_embed or 0) * self.d_pooled
            + tables * self.n_heads * offsets
            + (0 if pool is None else d * ((3 + pool.query) * d + 2 * (pool.d_mlp or 0)))
        )

    @property
    def is_feature_model(self) -> bool:
        """True where there is no head: the model returns its pooled features."""
        return not self.heads

    @property
    def is_linear_readout(self) -> bool:
        """True where a class score is a sum over tokens, each behind the final norm times a vector."""
        return not (self.attention_pool or self.unit_norm)

    @property
    def pooled_roles(self) -> tuple[Role, ...]:
        """The role whose tokens each part of `hook_pooled` is made of; none where one probe reads tokens of several."""
        return self.sources if self.n_pooled == len(self.sources) else ()

    @property
    def n_pooled(self) -> int:
        """Vectors in `hook_pooled`: one for each source, or the one that a probe gathers from all of them."""
        return len(self.sources) if self.attention_pool is None else 1

    @property
    def d_pooled(self) -> int:
        """Width of `hook_pooled`."""
        return self.d_model * self.n_pooled

    @property
    def d_out(self) -> int:
        """Width of the model's output: classes, or pooled features."""
        return self.n_classes if self.n_classes is not None else self.d_pooled

    # TransformerLens' ActivationCache asks these of a config.
    attn_only = False

    @property
    def normalization_type(self) -> str:
        """TransformerLens' word for the norm."""
        return "RMS" if self.norm == "rms" else "LN"

    @property
    def final_rms(self) -> bool:
        """Tells ActivationCache not to centre the stack where the family has no final norm."""
        return self.final_norm == "none"
