"""BEiT (Bao et al. 2021): relative position bias, LayerScale, no key bias; patches are pooled before the final norm."""

from __future__ import annotations

from typing import Any

from hooked_vit.architectures.base import (
    FEATURES,
    TRAINING_ONLY,
    VIT_BLOCK,
    VIT_EMBEDDING,
    Architecture,
    ConfigReader,
    classifier,
    linears,
    register,
    vit_sizes,
)
from hooked_vit.config import ViTConfig
from hooked_vit.errors import CheckpointError

BEIT_IRRELEVANT = (
    *TRAINING_ONLY,
    "vocab_size",
    # what the segmentation head and the backbone wrapper read
    "out_features",
    "out_indices",
    "stage_names",
    "add_fpn",
    "reshape_hidden_states",
    "pool_scales",
    "use_auxiliary_head",
    "auxiliary_loss_weight",
    "auxiliary_channels",
    "auxiliary_num_convs",
    "auxiliary_concat_input",
    "semantic_loss_ignore_index",
)


def config_from(hf: ConfigReader, hf_class: str) -> ViTConfig:
    """BeitModel, BeitForImageClassification (either pooling) or BeitForMaskedImageModeling (features only)."""
    mean_pooling = hf.use_mean_pooling and hf_class != "BeitForMaskedImageModeling"
    readout: dict[str, Any] = {"final_norm": "pooled", "sources": ("patches",)} if mean_pooling else {}
    return beit_graph(hf, classifies=hf_class == "BeitForImageClassification", **readout)


def beit_graph(hf: ConfigReader, *, classifies: bool, **readout: Any) -> ViTConfig:
    """The graph of BEiT and of data2vec-vision, which differ in their readouts."""
    if not isinstance(hf.patch_size, int):
        raise CheckpointError(f"BEiT's patch_size is one number, got {hf.patch_size}")
    return ViTConfig(
        **vit_sizes(hf),
        d_mlp=hf.intermediate_size,
        act_fn=hf.hidden_act,
        k_bias=False,
        absolute_positions=hf.use_absolute_position_embeddings,
        rel_pos_shared=hf.use_shared_relative_position_bias,
        rel_pos_per_layer=hf.use_relative_position_bias,
        layer_scale=hf.layer_scale_init_value > 0,
        **readout,
        **(classifier(hf) if classifies else FEATURES),
    )


register(
    Architecture(
        name="beit",
        classes=dict.fromkeys(("BeitModel", "BeitForImageClassification", "BeitForMaskedImageModeling"), config_from),
        keys=VIT_EMBEDDING
        | VIT_BLOCK
        | linears({"ln_final": "pooler.layernorm|layernorm", "head": "classifier"})
        | {
            "rel_pos.table": "shared_position_bias.relative_position_bias_table",
            "blocks.{l}.attn.rel_pos.table": "layers.{l}.relative_position_bias.relative_position_bias_table",
            "blocks.{l}.attn.ls": "layers.{l}.lambda_1",
            "blocks.{l}.mlp.ls": "layers.{l}.lambda_2",
        },
        roots=("beit.", ""),
        irrelevant_config=BEIT_IRRELEVANT,
        # the pre-training head predicts visual tokens, not classes
        irrelevant_tensors=("embeddings.mask_token", "lm_head.weight", "lm_head.bias"),
        examples={
            "BeitForImageClassification": "microsoft/beit-base-patch16-224",
            "BeitForMaskedImageModeling": "microsoft/beit-base-patch16-224-pt22k",
        },
    )
)
