"""Train the small models that ship with the package: `make zoo`, or `python -m zoo_training.train_zoo vit deit`.

Plain supervised training on digit scenes with the readout each family has. The five label models need about ten
minutes each on two CPU cores; a GPU is used where there is one. Each model is saved as any checkpoint is: config,
safetensors (float16, to keep the package small) and image processor, with the accuracy it reaches on handwriting
never seen in training noted in `zoo.json` beside it.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitImageProcessorPil,
    BitImageProcessorPil,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DeiTImageProcessorPil,
    Dinov2Config,
    Dinov2ForImageClassification,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from analyses.data.scenes import IMAGE_SIZE, MAX_COUNT, render_scenes
from hooked_vit.loading.progress import tqdm

ZOO = Path(__file__).resolve().parent.parent / "hooked_vit" / "zoo"
SIZE = {"hidden_size": 96, "num_hidden_layers": 8, "num_attention_heads": 4, "image_size": IMAGE_SIZE, "patch_size": 8}
MLP = {"intermediate_size": 384}
LABELS = {"id2label": {i: str(i) for i in range(10)}, "label2id": {str(i): i for i in range(10)}}
COUNTS = {"id2label": {i: str(i) for i in range(MAX_COUNT + 1)}, "label2id": {str(i): i for i in range(MAX_COUNT + 1)}}
SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
PROCESSING = {
    "size": SQUARE,
    "crop_size": SQUARE,
    "do_center_crop": False,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


@dataclass(frozen=True)
class Recipe:
    """How one zoo model is made: its untrained network, its image processor, the target it learns, who teaches it."""

    network: Callable[[], PreTrainedModel]
    processor: Callable
    target: str = "label"
    teacher: str | None = None


def _clip() -> PreTrainedModel:
    vision = CLIPVisionConfig(**SIZE, **MLP, hidden_act="quick_gelu")
    return CLIPForImageClassification(CLIPConfig(vision_config=vision.to_dict(), **LABELS))


RECIPES = {
    "vit": Recipe(lambda: ViTForImageClassification(ViTConfig(**SIZE, **MLP, **LABELS)), ViTImageProcessorPil),
    "deit": Recipe(
        lambda: DeiTForImageClassificationWithTeacher(DeiTConfig(**SIZE, **MLP, **LABELS)),
        DeiTImageProcessorPil,
        teacher="vit",
    ),
    "beit": Recipe(
        lambda: BeitForImageClassification(
            BeitConfig(
                **SIZE, **MLP, **LABELS, use_relative_position_bias=True, layer_scale_init_value=0.1, drop_path_rate=0.0
            )
        ),
        BeitImageProcessorPil,
    ),
    "dinov2": Recipe(lambda: Dinov2ForImageClassification(Dinov2Config(**SIZE, **LABELS)), BitImageProcessorPil),
    "clip": Recipe(_clip, CLIPImageProcessorPil),
    "vit-count": Recipe(
        lambda: ViTForImageClassification(ViTConfig(**SIZE, **MLP, **COUNTS)), ViTImageProcessorPil, target="count"
    ),
}


def draw(split: str, n: int, target: str, *, start: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [n, 3, h, w] images and [n] targets; of a counting set, every second scene has one object left out."""
    images, targets = [], []
    for i, scene in enumerate(tqdm(render_scenes(split, n, start=start), total=n, desc=f"{split} scenes")):
        left_out = target == "count" and i % 2 == 1
        images.append(scene.pair if left_out else scene.image)
        targets.append(scene.label if target == "label" else scene.count - left_out)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(targets)


def pixels(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What the saved image processor makes of uint8 images of the native size: mean and standard deviation 0.5."""
    return images.to(device).float() / 127.5 - 1


def loss_fn(output, targets: torch.Tensor, taught: torch.Tensor | None) -> torch.Tensor:
    """Cross-entropy; with a teacher, hard distillation (Touvron et al. 2021, eq. 3).

    CLS learns the label, the distillation token what the teacher says.
    """
    if taught is None:
        return F.cross_entropy(output.logits, targets, label_smoothing=0.1)
    own = F.cross_entropy(output.cls_logits, targets, label_smoothing=0.1)
    return (own + F.cross_entropy(output.distillation_logits, taught, label_smoothing=0.1)) / 2


@torch.no_grad()
def predict(model: PreTrainedModel, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.cat([model(pixels(part, device)).logits.argmax(-1).cpu() for part in images.split(256)])


def train(name: str, *, n_train: int, epochs: int, out: Path, device: torch.device, seed: int = 0) -> dict:
    """Train one zoo model, save it under `out / name`, return what `zoo.json` says of it."""
    recipe = RECIPES[name]
    images, targets = draw("train", n_train, recipe.target)
    taught = None
    if recipe.teacher is not None:
        teacher = ViTForImageClassification.from_pretrained(out / recipe.teacher, dtype=torch.float32).eval().to(device)
        taught = predict(teacher, images, device)
    torch.manual_seed(seed)
    model = recipe.network().to(device).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}], lr=1e-3
    )
    batch = 128
    steps = epochs * (n_train // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, s / 300) * 0.5 * (1 + math.cos(math.pi * min(1.0, s / steps)))
    )
    order = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        bar = tqdm(
            torch.randperm(n_train, generator=order)[: n_train // batch * batch].split(batch),
            desc=f"{name} {epoch + 1}/{epochs}",
        )
        for ids in bar:
            output = model(pixels(images[ids], device))
            loss = loss_fn(output, targets[ids].to(device), None if taught is None else taught[ids].to(device))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=f"{loss.item():.3f}")

    folder = out / name
    model.eval().half().save_pretrained(folder)
    recipe.processor(**PROCESSING).save_pretrained(folder)
    model.float()  # accuracy is that of the weights as saved
    accuracy = {}
    for split, n in (("validation", 2000), ("test", 4000)):
        x, y = draw(split, n, recipe.target)
        accuracy[split] = (predict(model, x, device) == y).float().mean().item()
    return {
        "target": recipe.target,
        "accuracy": accuracy,
        "n_train": n_train,
        "epochs": epochs,
        "seed": seed,
        "teacher": recipe.teacher,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"models to train (default: all of {', '.join(RECIPES)})")
    parser.add_argument("--n-train", type=int, default=24_000, help="training scenes")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=ZOO, help="folder the models are saved in")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    args = parser.parse_args()
    if unknown := set(args.names) - set(RECIPES):
        parser.error(f"unknown zoo models {sorted(unknown)}; there are {', '.join(RECIPES)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in args.names or RECIPES:
        entry = train(name, n_train=args.n_train, epochs=args.epochs, out=args.out, device=device)
        index = args.out / "zoo.json"  # read again each time: several processes may train at once
        known = json.loads(index.read_text()) if index.exists() else {}
        index.write_text(json.dumps({**known, name: entry}, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
