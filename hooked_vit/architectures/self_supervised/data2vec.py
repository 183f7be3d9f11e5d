"""data2vec-vision (Baevski et al. 2022): BEiT's graph, trained to predict a teacher's features of hidden patches.

With mean pooling the bare model has no norm at all: only the classifier's pooler brings one.
"""

from __future__ import annotations

import math
from typing import Any

from hooked_vit.architectures.base import VIT_EMBEDDING, Architecture, ConfigReader, linears, register
from hooked_vit.architectures.beit import BEIT_IRRELEVANT, beit_graph
from hooked_vit.config import ViTConfig


def config_from(hf: ConfigReader, hf_class: str) -> ViTConfig:
    """Data2VecVisionModel or Data2VecVisionForImageClassification (either pooling)."""
    classifies = hf_class == "Data2VecVisionForImageClassification"
    readout: dict[str, Any] = {}
    if hf.use_mean_pooling:
        readout = {"final_norm": "pooled" if classifies else "none", "sources": ("patches",)}
    return beit_graph(hf, classifies=classifies, **readout)


def set_kernel(theirs: Any, kernel: str) -> None:
    """Its attention modules are built for one kernel and do not ask the config again."""
    from transformers.models.data2vec.modeling_data2vec_vision import DATA2VEC_VISION_SELF_ATTENTION_CLASSES as KERNELS

    for module in theirs.modules():
        if type(module) in KERNELS.values():
            module.__class__ = KERNELS[kernel]
    theirs.config._attn_implementation = kernel


def eager_bound(cfg: ViTConfig) -> float:
    """Where their eager attention rounds otherwise: it adds a shared position bias to the scores apart from the block's
    own, and divides scores by the root of a head's width, where we multiply by its inverse."""
    exact_root = math.frexp(math.sqrt(cfg.d_head))[0] == 0.5
    return 0.0 if exact_root and not (cfg.rel_pos_shared and cfg.rel_pos_per_layer) else 3e-6


register(
    Architecture(
        name="data2vec",
        classes=dict.fromkeys(("Data2VecVisionModel", "Data2VecVisionForImageClassification"), config_from),
        keys=VIT_EMBEDDING
        | linears(
            {
                "blocks.{l}.ln1": "encoder.layer.{l}.layernorm_before",
                "blocks.{l}.ln2": "encoder.layer.{l}.layernorm_after",
                "blocks.{l}.attn.q": "encoder.layer.{l}.attention.attention.query",
                "blocks.{l}.attn.k": "encoder.layer.{l}.attention.attention.key",
                "blocks.{l}.attn.v": "encoder.layer.{l}.attention.attention.value",
                "blocks.{l}.attn.o": "encoder.layer.{l}.attention.output.dense",
                "blocks.{l}.mlp.fc_in": "encoder.layer.{l}.intermediate.dense",
                "blocks.{l}.mlp.fc_out": "encoder.layer.{l}.output.dense",
                "ln_final": "pooler.layernorm|layernorm",
                "head": "classifier",
            }
        )
        | {
            "rel_pos.table": "encoder.relative_position_bias.relative_position_bias_table",
            "blocks.{l}.attn.rel_pos.table": "encoder.layer.{l}.attention.attention.relative_position_bias."
            "relative_position_bias_table",
            "blocks.{l}.attn.ls": "encoder.layer.{l}.lambda_1",
            "blocks.{l}.mlp.ls": "encoder.layer.{l}.lambda_2",
        },
        roots=("data2vec_vision.", ""),
        irrelevant_config=BEIT_IRRELEVANT,
        # an index that follows from the grid, and the norm of a pooler that the bare model does not have
        irrelevant_tensors=("embeddings.mask_token", "*.relative_position_index", "pooler.layernorm.*"),
        eager_bound=eager_bound,
        set_kernel=set_kernel,
        examples={
            "Data2VecVisionModel": "facebook/data2vec-vision-base",
            "Data2VecVisionForImageClassification": "facebook/data2vec-vision-base-ft1k",
        },
    )
)
