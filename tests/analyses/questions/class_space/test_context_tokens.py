"""Which tokens lie on the object, what ImageNet-S says, and the comparison of class with context tokens."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

from analyses import context_tokens, load_data
from analyses.activations.class_masks import (
    Labelling,
    class_map,
    class_maps,
    counts_of,
    label_cells,
    mask_columns,
    published_patches,
)
from analyses.activations.token_groups import aligned_masks
from analyses.data import ImageData, as_data, map_labels
from analyses.data.batches import Batch
from analyses.data.imagenet_s import imagenet_synsets
from analyses.questions.class_space.context_tokens.context import ContextTally, measure_context
from analyses.questions.class_space.context_tokens.figure import change_figure, difference_figure, groups_figure
from analyses.questions.class_space.context_tokens.logit_change import LogitChange
from analyses.questions.class_space.measures.masks import masked_batches
from analyses.questions.class_space.measures.projection import project_tokens, token_ranks
from analyses.questions.class_space.measures.subjects import prepare
from analyses.questions.class_space.measures.updates import Scores
from hooked_vit import HookedViT
from hooked_vit.errors import NoHeadError
from tests.analyses.questions.class_space.cases import beside_reference, by, only
from tests.tiny import CLASSES, FAMILIES, IMAGE, make_hf, pixels, tiny

SQUASH = ViTImageProcessorPil(size={"height": IMAGE, "width": IMAGE})
SYNSETS = ["n01440764", "n01443537", "n02808440", "n01484850"]
FIT = load_data("scenes:train", n=20)
CLASSIFIERS = tuple(name for name in FAMILIES if name != "clip-projection")


def model(name: str = "vit", processor: object = SQUASH) -> HookedViT:
    return HookedViT.from_hf(make_hf(name), processor=processor)


def batch_of(images: list[Image.Image], masks: list[Image.Image], **extra: list) -> Batch:
    n = len(images)
    return Batch(images, torch.zeros(n, dtype=torch.long), torch.arange(n), {"mask": masks, **extra})


def coloured(ids: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8))


def test_a_coloured_mask_is_class_context_and_ignored() -> None:
    ids = np.array([[0, 263, 1000], [7, 919, 263]])
    assert np.asarray(class_map(coloured(ids), 263, 919)).tolist() == [[0, 1, 2], [0, 0, 1]]


def test_a_mask_of_objects_is_all_of_the_class() -> None:
    assert np.asarray(class_map(Image.fromarray(np.array([[0, 1], [3, 0]], np.uint8)), None, 3)).tolist() == [
        [0, 1],
        [1, 0],
    ]


@pytest.mark.parametrize(
    ("mask", "of_class", "highest", "says"),
    [
        (coloured(np.array([[920]])), 3, 919, r"ids \[920\], which stand for nothing"),
        (Image.fromarray(np.array([[[1, 0, 9]]], np.uint8)), 1, 919, "stand for nothing"),
        (Image.fromarray(np.array([[4]], np.uint8)), None, 3, r"ids \[4\]"),
        (coloured(np.array([[1]])), None, None, "mask_class"),
        (Image.fromarray(np.array([[1]], np.uint8)), 1, 919, "in colours"),
    ],
)
def test_masks_with_unknown_ids_or_of_another_kind_are_refused(mask, of_class, highest, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        class_map(mask, of_class, highest)
    image = Image.new("RGB", (1, 1))
    extra = {} if of_class is None else {"mask_class": [of_class]}
    extra |= {} if highest is None else {"mask_classes": [highest]}
    with pytest.raises(ValueError, match="image 0"):
        class_maps(batch_of([image], [mask], **extra))


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image 0 is \(4, 4\) and its mask \(4, 5\)"):
        class_maps(batch_of([Image.new("RGB", (4, 4))], [Image.new("L", (4, 5))]))


def test_patch_rules() -> None:
    """Four patches of 2 x 2: half of the class, one pixel of it, mostly ignored, ignored but for the class."""
    maps = torch.tensor([[[1, 0, 0, 0], [1, 0, 0, 1], [2, 2, 2, 1], [2, 0, 1, 2]]])
    want = {
        "area": [1, 0, -1, 1],
        "any": [1, 1, -1, 1],
        "centre": [0, 1, 0, -1],
        "corner": [1, 0, -1, -1],
    }
    for rule, labels in want.items():
        assert label_cells(maps, (2, 2), rule).tolist() == [labels], rule
    assert label_cells(maps, (2, 2), tau=0.25).tolist() == [[1, 1, -1, 1]]
    assert label_cells(maps, (2, 2), tau=0.75).tolist() == [[0, 0, -1, 1]]
    with pytest.raises(ValueError, match="not covered"):
        label_cells(maps, (3, 2))


@pytest.mark.parametrize(
    "processor",
    [
        SQUASH,
        ViTImageProcessorPil(
            size={"shortest_edge": IMAGE}, do_center_crop=True, crop_size={"height": IMAGE, "width": IMAGE}
        ),
        ViTImageProcessorPil(
            size={"shortest_edge": 48}, do_center_crop=True, crop_size={"height": IMAGE, "width": IMAGE}
        ),
    ],
    ids=["squashed", "cropped", "enlarged and cropped"],
)
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (64, 128)])
def test_masks_follow_the_resizing_and_the_crop(processor, size: tuple[int, int]) -> None:
    """A white object on black: where the model sees white, the mask says object."""
    net = model(processor=processor)
    width, height = size
    shapes = np.zeros((2, height, width), np.uint8)
    shapes[0, : height // 2, width // 4 :] = 1
    shapes[1, height // 3 :, : width // 2] = 1
    images = [Image.fromarray(255 * s).convert("RGB") for s in shapes]
    maps = aligned_masks(net, class_maps(batch_of(images, [Image.fromarray(s) for s in shapes])))
    seen = net.preprocess(images)[:, 0]
    white = (seen > seen.mean()).long()
    assert maps.shape == white.shape
    assert (maps != white).double().mean() < 0.07  # edges blur
    share = white.reshape(2, 4, 8, 4, 8).double().mean((2, 4)).flatten(1)
    clear = (share < 0.25) | (share > 0.75)
    assert torch.equal(label_cells(maps, (4, 4))[clear], (share > 0.5).long()[clear])


def test_published_labels_are_one_pixel_of_the_squeezed_mask() -> None:
    """They differ from the correct ones in area, in what is cropped, and in what is ignored."""
    ids = np.zeros((64, 128), np.int64)
    ids[:, 32:96] = 5  # the middle, which is all that a square crop sees
    ids[0, 0] = 5  # a single pixel, the corner of the first patch
    ids[16:32, 32:64] = 1000
    crop = ViTImageProcessorPil(
        size={"shortest_edge": IMAGE}, do_center_crop=True, crop_size={"height": IMAGE, "width": IMAGE}
    )
    batch = batch_of([Image.new("RGB", (128, 64))], [coloured(ids)], mask_class=[5], mask_classes=[9])
    correct = label_cells(aligned_masks(model(processor=crop), class_maps(batch)), (4, 4))
    assert correct.tolist() == [[1, 1, 1, 1, -1, -1, 1, 1, *[1] * 8]]
    assert published_patches(batch, (4, 4)).tolist() == [[1, 1, 1, 0, 0, 0, 1, 0, *[0, 1, 1, 0] * 2]]


def imagenet_s(root: Path, classes: dict[str, int]) -> Path:
    """A folder as the scripts of ImageNet-S make it: `classes` are synsets and their numbers of photos."""
    rng = np.random.default_rng(0)
    ids = {name: i for i, name in enumerate(sorted(SYNSETS), start=1)}
    (root / "ImageNetS_categories_im4.txt").write_text("\n".join(SYNSETS))
    for name, n in classes.items():
        for part in ("validation", "validation-segmentation"):
            (root / part / name).mkdir(parents=True)
        for i in range(n):
            photo = Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
            photo.save(root / "validation" / name / f"{i}.JPEG")
            mask = np.zeros((40, 48), np.int64)
            mask[:20] = ids[name]
            mask[30:] = 1000
            coloured(mask).save(root / "validation-segmentation" / name / f"{i}.png")
    return root


def test_imagenet_s_draws_five_of_each_class_and_stores_which(tmp_path: Path) -> None:
    root = imagenet_s(tmp_path, {"n01440764": 7, "n01443537": 5, "n02808440": 6, "n01484850": 4})
    data = load_data(f"imagenet-s:{root}", seed=3)
    assert data.class_names == ["n01440764", "n01443537"]  # a merged one and one of four photos are left out
    assert data.labels.bincount().tolist() == [5, 5]
    files = data.column("file")
    assert len(set(files)) == 10
    assert load_data(f"imagenet-s:{root}", seed=3).column("file") == files
    assert load_data(f"imagenet-s:{root}", seed=4).column("file") != files
    assert load_data(f"imagenet-s:{root / 'validation'}", seed=3).column("file") == files
    assert len(load_data(f"imagenet-s:{root}", n=4)) == 4
    assert map_labels(data, 1000).ids.tolist() == [0, 1]
    assert map_labels(data, [f"class {i}" for i in range(1000)]).ids.tolist() == [0, 1]
    (batch,) = data.batches(20, extra=mask_columns(data))
    assert set(batch.extra["mask_class"]) == {1, 2}
    maps = [np.asarray(found) for found in class_maps(batch)]
    assert all((found[:20] == 1).all() and (found[20:30] == 0).all() and (found[30:] == 2).all() for found in maps)


def test_imagenet_s_turns_a_mask_as_its_photo_is_turned(tmp_path: Path) -> None:
    root = imagenet_s(tmp_path, {"n01440764": 5})
    for i in range(5):
        path = root / "validation" / "n01440764" / f"{i}.JPEG"
        photo = Image.open(path)
        photo.load()
        exif = photo.getexif()
        exif[0x0112] = 6  # a quarter turn
        photo.save(path, exif=exif)
    (batch,) = load_data(f"imagenet-s:{root}").batches(5, extra=["mask", "mask_class", "mask_classes"])
    found = np.asarray(class_maps(batch)[0])
    assert batch.images[0].size == (40, 48)
    assert (found[:, 20:] == 1).all()  # what was on top is on the right
    assert (found[:, :10] == 2).all()


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda r: (r / "validation-segmentation" / "n01440764" / "0.png").unlink(), FileNotFoundError, "has a mask"),
        (lambda r: (r / "validation" / "cats").mkdir(), ValueError, "cats is none"),
        (lambda r: [p.unlink() for p in (r / "validation" / "n01440764").iterdir()], ValueError, "no class has the 5"),
        (lambda r: (r / "validation-segmentation").rename(r / "masks"), FileNotFoundError, "no folder"),
    ],
)
def test_imagenet_s_that_is_not_whole_is_refused(tmp_path: Path, spoil, error: type, says: str) -> None:
    root = imagenet_s(tmp_path, {"n01440764": 5})
    spoil(root)
    with pytest.raises(error, match=says):
        load_data(f"imagenet-s:{root}")


def test_the_list_of_synsets_is_imagenets() -> None:
    synsets = list(imagenet_synsets())
    assert len(synsets) == 1000
    assert synsets == sorted(synsets)
    assert sum(imagenet_synsets().values()) == 919


def scenes(n: int) -> ImageData:
    return load_data("scenes:test", n=n)


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_groups_agree_with_a_plain_reference(name: str) -> None:
    _, net = tiny(name)
    x, labels = pixels(net, n=6), torch.arange(6) % CLASSES
    patches = torch.randint(-1, 2, (6, 16), generator=torch.Generator().manual_seed(0))
    patches[0], patches[1] = 0, 1  # one image without class tokens, one without context
    rows = measure_context(net, [(x[:2], labels[:2], patches[:2]), (x[2:], labels[2:], patches[2:])], n_shuffles=50)
    _, kept = net.run_with_cache(x)
    for layer in range(2):
        pos = token_ranks(project_tokens(net, kept["resid_post", layer]), labels)[:, net.tokens.patches].numpy()
        r, means = 1 - pos / CLASSES, {}
        for group, label in (("class", 1), ("context", 0)):
            means[group] = [r[i][patches[i].numpy() == label].mean() for i in range(6) if (patches[i] == label).any()]
            (row,) = [
                x for x in rows if (x["measure"], x.get("layer"), x.get("tokens")) == ("identifiability", layer, group)
            ]
            assert row["value"] == pytest.approx(np.mean(means[group]), abs=1e-6)
            assert row["n"] == len(means[group])
        (row,) = [x for x in rows if (x["measure"], x.get("layer")) == ("difference", layer)]
        both = [
            r[i][patches[i].numpy() == 1].mean() - r[i][patches[i].numpy() == 0].mean()
            for i in range(6)
            if len(set(patches[i].tolist()) & {0, 1}) == 2
        ]
        assert row["value"] == pytest.approx(np.mean(both), abs=1e-6)
        assert row["n"] == len(both) == 4
        assert row["p"] <= row["p_adjusted"]


def test_updates_of_class_and_context_tokens_are_compared_as_in_a_plain_reference() -> None:
    net, reference, x, labels = beside_reference(6)
    patches = torch.randint(-1, 2, (6, 16), generator=torch.Generator().manual_seed(3))
    patches[0] = 0  # nothing to compare
    y, run = labels.numpy(), reference.run(x.double().numpy())
    batches = [(x[:4], labels[:4], patches[:4]), (x[4:], labels[4:], patches[4:])]
    rows, published = (measure_context(net, batches, n_shuffles=9, published=p) for p in (False, True))
    marks = patches.numpy()
    for layer in range(2):
        for part, update, read in (("attn", run.attn, run.h[:-1]), ("mlp", run.mlp, run.u)):
            change = (reference.true_logit(update[layer], y) - reference.true_logit(read[layer], y))[:, 1:]
            apart = [change[i][marks[i] == 1].mean() - change[i][marks[i] == 0].mean() for i in range(1, 6)]
            row = only(rows, measure="logit_change", layer=layer, part=part)
            assert row["value"] == pytest.approx(np.mean(apart), abs=1e-5)
            assert row["n"] == 5
            assert 1 / 10_000 <= row["p"] <= row["p_adjusted"] <= 1
            told = by(published, measure="logit_change", layer=layer, part=part)
            assert len(told) == (part == "attn" and layer == 1)
            for one in told:  # pooled over images, and what has no label is context
                assert one["value"] == pytest.approx(change[marks == 1].mean() - change[marks != 1].mean(), abs=1e-5)


def test_an_update_that_raises_the_class_on_the_object_alone_is_found_and_an_even_one_is_not() -> None:
    rng, patches = np.random.default_rng(0), torch.tensor([[1, 1, 0, 0]] * 20)
    zero = torch.zeros(20, 4, 3)
    noise = torch.from_numpy(rng.normal(size=(20, 4, 3))).float()
    tally = LogitChange()
    tally.add(0, Scores(zero, noise + 5.0 * patches[..., None], zero, noise, zero), torch.zeros(20).long(), patches)
    attn, mlp = (only(list(tally.rows()), part=part) for part in ("attn", "mlp"))
    assert attn["value"] == pytest.approx(mlp["value"] + 5, abs=1e-5)
    assert attn["p_adjusted"] < 0.001
    assert mlp["p"] > 0.05


def test_figures_and_sentences_count_layers_as_the_frame_does(result) -> None:
    rows = result.frame[(result.frame.measure == "difference") & (result.frame.model == "vit")]
    best = int(rows.loc[rows.value.idxmax(), "layer"])
    assert any(f"largest at layer {best}," in sentence for sentence in result.meta["summary"])
    boxes = [trace for trace in groups_figure(result).data if trace.type == "box"]
    assert all([round(x) for x in box.x] == [-1, 0, 1] for box in boxes)
    curve = next(trace for trace in difference_figure(result).data if trace.name == "class minus context")
    assert list(curve.x) == [-1, 0, 1]


def test_images_without_class_tokens_are_counted() -> None:
    table = torch.tensor([[0, 0], [1, 1], [1, 0], [-1, -1]])
    assert counts_of(table) == {
        "images": 4,
        "without_class_tokens": 2,
        "without_context_tokens": 2,
        "with_both": 1,
        "tokens": 8,
        "class_tokens": 3,
        "unlabelled_tokens": 2,
    }
    tally = ContextTally(5)
    tally.add({-1: torch.zeros(2, 3, dtype=torch.float64)}, torch.zeros(2, 3, dtype=torch.long))
    assert not [row for row in tally.rows() if row["measure"] == "difference"]


def planted(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images that differ in difficulty; in each of them class and context tokens are alike."""
    rng = np.random.default_rng(seed)
    hard = rng.permutation(np.repeat([0.0, 4.0], 20))
    pos = torch.from_numpy(hard)[:, None].expand(-1, 20).contiguous()
    labels = torch.zeros(40, 20, dtype=torch.long)
    for image, rank in enumerate(hard):
        labels[image, : 15 if rank == 0 else 5] = 1  # easy images show more of the object
    return pos, labels


def compared(pos: torch.Tensor, labels: torch.Tensor, published: bool) -> dict:
    tally = ContextTally(5, n_shuffles=199, published=published)
    tally.add({-1: pos}, labels)
    (row,) = [row for row in tally.rows() if row["measure"] == "difference"]
    return row


def test_published_shuffles_over_all_tokens_mistake_easy_images_for_class_tokens() -> None:
    pos, labels = planted()
    correct, published = compared(pos, labels, False), compared(pos, labels, True)
    assert correct["value"] == pytest.approx(0, abs=1e-12)
    assert correct["p"] == 1.0
    assert published["value"] == pytest.approx(0.4)
    assert published["p"] == 0.0  # strictly greater, and of 300 draws: a p of zero


def test_a_difference_within_images_is_found_and_none_is_not() -> None:
    rng = np.random.default_rng(1)
    labels = torch.from_numpy(rng.integers(0, 2, (30, 20)))
    even = torch.from_numpy(rng.integers(0, 5, (30, 20)).astype(np.float64))
    better = torch.where(labels == 1, (even - 2).clamp(min=0), even)
    assert compared(better, labels, False)["p"] == pytest.approx(1 / 200)
    assert compared(even, labels, False)["p"] > 0.02
    assert compared(even, labels, True)["p"] > 0.02


@pytest.fixture(scope="module")
def result():
    nets = {name: model(name) for name in ("vit", "dinov2")}
    return context_tokens(nets, scenes(30), fit_data=FIT, rule="any", n_shuffles=50, batch_size=16)


def test_the_analysis_says_what_it_left_out(result) -> None:
    for row in result.meta["table"]:
        assert row["images"] == 30
        assert row["with_both"] + row["without_class_tokens"] + row["without_context_tokens"] == 30
    assert any("no class token" in note for note in result.meta["notes"])
    frame = result.frame
    assert set(frame[frame.measure == "identifiability"].layer) == {-1, 0, 1}


@pytest.mark.parametrize("draw", [groups_figure, difference_figure, change_figure])
def test_figures_hold_every_model(result, draw) -> None:
    text = draw(result).to_json()
    assert "vit" in text
    assert "dinov2" in text


def test_published_settings_run_on_the_whole_mask() -> None:
    subject = next(iter(prepare({"vit": model()}, scenes(20), FIT)))
    data = scenes(20)
    (published,) = [labels for _, _, labels, _ in masked_batches(subject, data, 20, "x", Labelling(published=True))]
    (correct,) = [labels for _, _, labels, _ in masked_batches(subject, data, 20, "x", Labelling())]
    assert published.shape == correct.shape == (20, 16)
    assert not torch.equal(published, correct)
    result = context_tokens({"vit": model()}, data, fit_data=FIT, repro=True)
    rows = result.frame[result.frame.measure == "difference"]
    assert (rows.p == rows.p_adjusted).all()
    changes = result.frame[result.frame.measure == "logit_change"]
    assert changes[["layer", "part"]].to_numpy().tolist() == [[1, "attn"]]
    drawn = next(trace for trace in change_figure(result).data if trace.name == "attention")
    assert list(drawn.y) == changes.value.tolist()
    assert any("published" in note for note in result.meta["notes"])


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        (as_data(([Image.new("RGB", (8, 8))] * 10, [0, 1, 2, 3, 4] * 2)), {}, "no column 'mask'"),
        (None, {"tau": 0.0}, "tau above 0"),
    ],
)
def test_bad_input_is_refused(data, options: dict, says: str) -> None:
    net = model()
    with pytest.raises(ValueError, match=says):
        context_tokens({"vit": net}, data, head="ridge", **options)
    assert net.run.n_forwards == 0


def test_a_model_without_the_head_a_role_needs_is_refused() -> None:
    with pytest.raises(NoHeadError, match="prototypes"):
        measure_context(tiny("clip-projection")[1], [])


def test_masks_without_a_class_token_leave_nothing_to_test() -> None:
    """Where no image has both kinds of token the analysis says so."""
    few = scenes(6)
    (batch,) = few.batches(6, extra=["mask"])
    empty = [Image.new(mask.mode, mask.size) for mask in batch.extra["mask"]]
    rows = {"image": batch.images, "label": (batch.labels % CLASSES).tolist(), "mask": empty}
    data = as_data(datasets.Dataset.from_dict(rows))
    with pytest.raises(ValueError, match="has patches of its class and others"):
        context_tokens({"vit": model()}, data, fit_data=FIT, n_shuffles=2)
