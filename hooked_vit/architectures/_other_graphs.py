"""Classes of transformers that compute something else than the one graph here, and in a sentence what."""

from __future__ import annotations

from fnmatch import fnmatchcase

WINDOWS = "its blocks attend inside windows, which are shifted or merged from stage to stage, not among all tokens"
STAGES = "it is a pyramid: tokens are merged from stage to stage, so there is no one residual stream"
NAFLEX = (
    "it takes images of any shape as padded lists of patches (NaFlex); the SigLIP 2 checkpoints of a fixed size are "
    "saved as SiglipModel"
)
VIDEO = "it reads videos: its tokens are pieces of space and time"
TEXT = "it reads text and has no vision tower; load the model of images and text that it belongs to"
DECODER = "it predicts the pixels of hidden patches from what an encoder made of the others; only encoders have a graph"
SEVERAL = "a backbone returns several maps of several depths; load the model without it, its hooks show every depth"
LANGUAGE = (
    "it is a language model around a vision tower; load it with transformers and give the tower alone: "
    "HookedViT.from_hf(vlm.model.vision_tower)"
)

BASE = "it is what the classes of its family are derived from, and no model by itself"
SOUND = "it reads sounds: its tokens are pieces of a recording"
MAP = (
    "its head predicts maps, boxes or hidden pixels, and no graph has such a head; load the class of features of the "
    "same checkpoint, where there is one"
)
NO_ATTENTION = "its blocks mix tokens by convolution, pooling or modulation, not by attention among all of them"
WORDS = "words and patches pass the same blocks or attend to each other, so there is no stream of the image alone"
SEVERAL_CLS = "it has several tokens where the graph has one CLS"
LISTS = "it takes images of any shape as one list of patches, in which each attends to those of its own image alone"
SHARED_KEYS = "several heads share keys and values, which no graph here does"
TEXT_READER = "it reads or writes text beside a vision tower of its own, which nobody has compared with the graph"
UNREAD = (
    "nobody has compared it with the graph to the last bit, and what was not compared is not loaded; `hooked-vit docs "
    "families` says what was"
)

# models of images and texts around towers, by the beginning of their names: first those whose tower is loaded
AROUND_A_TOWER = ("AyaVision", "Llava", "VipLlava", "VideoLlava", "PaliGemma", "PI0")
WITH_TOWERS_OF_THEIR_OWN = (
    *("Blip", "Blt", "CLIPSeg", "CohereCompass", "Cosmos3Edge", "DeepseekOcr2", "Dots3Note", "EdgeTam", "Ernie4_5_VL"),
    *("Exaone4_5", "Florence2", "Fuyu", "Gemma4", "Git", "Glm4v", "Glm5Next", "GlmImage", "GlmOcr", "GotOcr2"),
    *("GraniteDocling", "GroupViT", "HunYuanVL", "Idefics", "Inkling", "InstructBlip", "InternVL", "Janus", "Kimi"),
    *("Kosmos2", "Lfm3Vl", "LightOnOcr", "Llama4", "MiniCPM", "MiniMaxM3VL", "Mistral3", "MistralLarge4", "Mllama"),
    *("Molmo2", "Muse", "NemotronH", "NeoMME", "Ovis2", "OwlViT", "Owlv2", "PaddleOCR", "Phi4Multimodal"),
    *("PPFormulaNet", "QianfanOCR", "Qwen", "SLANeXt", "SmolVLM", "Step3p7", "Tipsv2", "UnlimitedOcr", "VideoLlama3"),
    "Udop",
)

# The first pattern that fits a class decides.
WHY: tuple[tuple[str, str], ...] = (
    *((f"*{name}*", WINDOWS) for name in ("Qwen2VisionTransformer", "Qwen2VL", "Qwen2_5_VL", "Qwen2_5_Vision")),
    *((f"{name}*", WINDOWS) for name in ("Swin", "DonutSwin", "MaskFormerSwin", "Maxvit", "Sam", "VitDet")),
    *((f"{name}*", STAGES) for name in ("Hiera", "Pvt", "Cvt", "Segformer", "Levit", "MobileViT", "Efficient")),
    *((f"{name}*", STAGES) for name in ("Dinat", "GLPN")),
    *((f"{name}*", NO_ATTENTION) for name in ("ConvNext", "DINOv3ConvNext", "PoolFormer", "FocalNet", "SwiftFormer")),
    *((f"{name}*", VIDEO) for name in ("VJEPA", "VideoMAE", "Vivit", "Timesformer", "Videomt", "XCLIP")),
    ("Siglip2*", NAFLEX),
    *((f"*{name}*", TEXT) for name in ("TextModel", "TextEncoder", "TextTransformer")),
    ("*MAEDecoder", DECODER),
    ("*Backbone", SEVERAL),
    ("*ForConditionalGeneration", LANGUAGE),
    *((pattern, BASE) for pattern in ("*PreTrainedModel", "*PretrainedModel")),
    *((pattern, SOUND) for pattern in ("AST*", "Clap*", "*AudioModel*", "Data2VecAudio*")),
    ("Data2VecText*", TEXT),
    *((f"*For{what}*", MAP) for what in ("SemanticSegmentation", "UniversalSegmentation", "InstanceSegmentation")),
    *((f"*For{what}*", MAP) for what in ("ImageSegmentation", "DepthEstimation", "ObjectDetection", "PoseEstimation")),
    *((f"*For{what}*", MAP) for what in ("NormalEstimation", "PointmapEstimation", "ImageMatting")),
    *((f"*For{what}*", MAP) for what in ("MaskedImageModeling", "SceneTextRecognition")),
    *((f"{name}*", MAP) for name in ("MaskFormer", "DPT", "DepthPro", "SegGpt", "Yolos", "LwDetr", "RfDetr")),
    *((f"{name}*", WORDS) for name in ("Vilt", "LayoutLM", "BridgeTower", "Flava", "VisualBert")),
    *((f"{name}*", SEVERAL_CLS) for name in ("Pixio", "Radio")),
    ("Sapiens2*", SHARED_KEYS),
    ("Pixtral*", LISTS),
    *((f"{name}*", LANGUAGE) for name in AROUND_A_TOWER),
    *((f"{name}Vision*", UNREAD) for name in WITH_TOWERS_OF_THEIR_OWN),
    *((f"{name}*", TEXT_READER) for name in WITH_TOWERS_OF_THEIR_OWN),
    *((f"{name}*", UNREAD) for name in ("MLCD", "Mgpstr")),
)


def why_not(hf_class: str) -> str | None:
    """What a class computes instead, None where nothing is known of it.

    >>> why_not("SwinModel")
    'its blocks attend inside windows, which are shifted or merged from stage to stage, not among all tokens'
    """
    return next((why for pattern, why in WHY if fnmatchcase(hf_class, pattern)), None)
