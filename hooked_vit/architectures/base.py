"""What a family says of itself, and the reader that makes it account for every config attribute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from torch import Tensor

from hooked_vit.config import ViTConfig
from hooked_vit.errors import CheckpointError

ALL: dict[str, Architecture] = {}

# `{l}` stands for the layer. Ours -> theirs, after their base prefix is stripped.
Keys = Mapping[str, str]


class ConfigReader:
    """Wraps a transformers config and remembers which attributes were read, so that none is overlooked."""

    def __init__(self, config: Any) -> None:
        self._config = config
        self._read: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self._read.add(name)
        return getattr(self._config, name)

    def sub(self, name: str) -> ConfigReader:
        """A reader of a nested config."""
        return ConfigReader(getattr(self, name))

    def pair(self, name: str) -> tuple[int, int]:
        """A size given as one number or as (height, width)."""
        value = getattr(self, name)
        return (value, value) if isinstance(value, int) else (value[0], value[1])

    def square(self, name: str) -> int:
        """A size whose two sides must agree."""
        height, width = self.pair(name)
        if height != width:
            raise CheckpointError(f"{name} must be square, got {height} x {width}")
        return height

    def labels(self) -> tuple[int, tuple[str, ...]]:
        """Number of classes and their names in order of id."""
        names = self.id2label
        if set(names) != set(range(len(names))):
            raise CheckpointError(f"id2label must name the classes 0 to {len(names) - 1}, it names {sorted(names)[:8]}")
        return len(names), tuple(str(names[i]) for i in range(len(names)))

    def refuse_unread(self, irrelevant: tuple[str, ...]) -> None:
        """Raise CheckpointError for every attribute that was neither read nor declared irrelevant."""
        from transformers import PretrainedConfig

        everywhere = set(PretrainedConfig().to_dict()) | {"model_type", "_name_or_path", "transformers_version"}
        inert = {name for name, value in WRITTEN_BY_VERSION_4.items() if getattr(self._config, name, ...) == value}
        unread = set(self._config.to_dict()) - self._read - set(irrelevant) - everywhere - inert
        if unread:
            shown = ", ".join(f"{name}={getattr(self._config, name, None)!r}" for name in sorted(unread))
            raise CheckpointError(
                f"{type(self._config).__name__} has attributes this version neither handles nor knows to be irrelevant:"
                f" {shown}. If they do not change inference, add them to the family's `irrelevant_config`"
            )


@dataclass(frozen=True, kw_only=True)
class CheckpointFiles:
    """How to read checkpoints that another library saved.

    `reads` tells such a config.json from others, `settings` makes of it, or of a model's name in that library, the
    class and its config, with some settings changed. `processor` makes an image processor of the config.json.
    """

    reads: Callable[[Mapping[str, Any]], bool]
    settings: Callable[..., tuple[str, Any]]
    processor: Callable[[Mapping[str, Any]], Any]
    named: Callable[[], tuple[str, ...]]


Asked = tuple[Callable[..., Any], Mapping[str, Any]]


@contextmanager
def image_side(theirs: Any, pixels: Tensor) -> Iterator[Asked]:
    """Their model; of a model of images and text the image side alone."""
    yield getattr(theirs, "get_image_features", theirs), {}


@dataclass(frozen=True, kw_only=True)
class Texts:
    """How a family's text tower was trained to read: which of its `classes` hold one, and how captions are padded.

    `padding` is as a tokenizer takes it, `inputs` are what the tower is given of what the tokenizer returns, `length`
    finds how many tokens the tower of a model in memory reads, `scale` what its cosines are multiplied with, and `end`
    the token at which it is read, where that is not a place.
    """

    classes: tuple[str, ...]
    padding: str | bool
    inputs: tuple[str, ...]
    length: Callable[[Any], int] = attrgetter("config.text_config.max_position_embeddings")
    scale: Callable[[Any], Tensor] = lambda theirs: theirs.logit_scale.exp()
    end: Callable[[Any], int | None] = lambda theirs: None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A family: how to read its configs, and where each of its tensors goes.

    `classes` maps a transformers class to the function that reads its config. `keys` maps our tensors to theirs, with
    `{l}` for the layer; `roots` are the prefixes under which the body of their model may live. `class_readout` is what
    the family's classifier reads, where checkpoints that came without one answer with something else.
    `irrelevant_*` are named so that anything else is an error. `foreign_size_flags` are keyword arguments their forward
    needs for a foreign image size. `as_read` gives what to call for some pixels, and with which keyword arguments, so
    that their model computes what the graph computes while the `with` lasts. `set_kernel` switches their attention to
    "eager" or "sdpa"; `eager_bound` is how far eager may be from ours where it adds up the same numbers in another
    order. `unnormed_tokens` says that the last hidden state of their body has not passed the final norm. `config_of`
    finds the config of a model in memory, and `prepare` brings its state dict into the layout that `keys` speaks of.
    `files` reads checkpoints that are not saved by transformers. `examples` maps a class to a checkpoint that people
    know and that was saved from it. `texts` says how classes that hold a text tower too read captions.
    """

    name: str
    classes: Mapping[str, Callable[[ConfigReader, str], ViTConfig]]
    keys: Keys
    roots: tuple[str, ...]
    class_readout: Mapping[str, Any] = field(default_factory=dict)
    irrelevant_config: tuple[str, ...] = ()
    irrelevant_tensors: tuple[str, ...] = ()
    foreign_size_flags: Mapping[str, Any] = field(default_factory=dict)
    as_read: Callable[[Any, Tensor], AbstractContextManager[Asked]] = image_side
    set_kernel: Callable[[Any, str], None] = lambda theirs, kernel: theirs.set_attn_implementation(kernel)
    eager_bound: Callable[[ViTConfig], float] = lambda cfg: 0.0
    unnormed_tokens: bool = False
    config_of: Callable[[Any], Any] = attrgetter("config")
    prepare: Callable[[ViTConfig, dict[str, Tensor]], dict[str, Tensor]] = lambda cfg, tensors: tensors
    files: CheckpointFiles | None = None
    examples: Mapping[str, str] = field(default_factory=dict)
    texts: Texts | None = None


def register(architecture: Architecture) -> Architecture:
    """Make a family known; its name must be new."""
    if architecture.name in ALL:
        raise ValueError(f"an architecture called {architecture.name!r} is registered already")
    ALL[architecture.name] = architecture
    return architecture


# What nearly every family in transformers shares: attributes of training or initialisation, and the ViT block's keys.
TRAINING_ONLY = (
    "dropout",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
    "initializer_range",
    "initializer_factor",
    "drop_path_rate",
    "encoder_stride",
    "problem_type",
    "use_mask_token",
)

# What version 4 of transformers wrote into every config, a nested one included, and version 5 keeps as an attribute.
# With another value it means a decoder, heads cut out or the like.
WRITTEN_BY_VERSION_4: Mapping[str, Any] = {
    **dict.fromkeys(("add_cross_attention", "is_decoder", "tie_encoder_decoder", "torchscript", "use_bfloat16"), False),
    **dict.fromkeys(("tf_legacy_loss", "gradient_checkpointing"), False),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id")),
    **dict.fromkeys(("cross_attention_hidden_size", "finetuning_task", "prefix", "task_specific_params")),
    **{"tokenizer_class": None, "tie_word_embeddings": True, "pruned_heads": {}, "_attn_implementation_autoset": True},
}

LINEARS = ("weight", "bias")


def linears(pairs: Mapping[str, str]) -> dict[str, str]:
    """Weight and bias entries for modules that have both."""
    return {f"{ours}.{part}": f"{theirs}.{part}" for ours, theirs in pairs.items() for part in LINEARS}


VIT_EMBEDDING = {
    "embed.cls": "embeddings.cls_token",
    "pos_embed.weight": "embeddings.position_embeddings",
    **linears({"embed.patch": "embeddings.patch_embeddings.projection"}),
}
VIT_BLOCK = linears(
    {
        "blocks.{l}.ln1": "layers.{l}.layernorm_before",
        "blocks.{l}.ln2": "layers.{l}.layernorm_after",
        "blocks.{l}.attn.q": "layers.{l}.attention.q_proj",
        "blocks.{l}.attn.k": "layers.{l}.attention.k_proj",
        "blocks.{l}.attn.v": "layers.{l}.attention.v_proj",
        "blocks.{l}.attn.o": "layers.{l}.attention.o_proj",
        "blocks.{l}.mlp.fc_in": "layers.{l}.mlp.fc1",
        "blocks.{l}.mlp.fc_out": "layers.{l}.mlp.fc2",
    }
)


def vit_sizes(hf: ConfigReader) -> dict[str, Any]:
    """The sizes all ViT-like configs spell alike."""
    return {
        "d_model": hf.hidden_size,
        "n_layers": hf.num_hidden_layers,
        "n_heads": hf.num_attention_heads,
        "image_size": hf.pair("image_size"),
        "patch_size": hf.square("patch_size"),
        "n_channels": hf.num_channels,
        "eps": hf.layer_norm_eps,
    }


def plain_vit(hf: ConfigReader, **readout: Any) -> ViTConfig:
    """The ViT of Dosovitskiy et al. 2021, as several families share it."""
    bias = hf.qkv_bias
    return ViTConfig(
        **vit_sizes(hf),
        d_mlp=hf.intermediate_size,
        act_fn=hf.hidden_act,
        q_bias=bias,
        k_bias=bias,
        v_bias=bias,
        **readout,
    )


def classifier(hf: ConfigReader) -> dict[str, Any]:
    """One linear classifier, named by the config's labels."""
    n, names = hf.labels()
    return {"n_classes": n, "class_names": names}


FEATURES: dict[str, Any] = {"heads": (), "n_classes": None}


def plain_family(
    name: str, model: str, classified: str, *, root: str, reads: Mapping[str, Any] | None = None, **details: Any
) -> Architecture:
    """A family whose graph is the plain ViT's: a class of features and a class that classifies.

    `root` is where the body of the second lives, `reads` what both read where that is not CLS.
    """
    readout = dict(reads or {"sources": ("cls",)})

    def config_from(hf: ConfigReader, hf_class: str) -> ViTConfig:
        return plain_vit(hf, **readout, **(classifier(hf) if hf_class == classified else FEATURES))

    return Architecture(
        name=name,
        classes=dict.fromkeys((model, classified), config_from),
        keys=VIT_EMBEDDING | VIT_BLOCK | linears({"ln_final": "layernorm", "head": "classifier"}),
        roots=(root, ""),
        foreign_size_flags={"interpolate_pos_encoding": True},
        **details,
    )
