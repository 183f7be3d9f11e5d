"""Which rows of each run's result stand on the page, and what was claimed of large models."""

from __future__ import annotations

from dataclasses import replace

from analyses.reproductions.real_models.order import order_found
from analyses.reproductions.real_models.shown import (
    AS_PUBLISHED,
    CLEAN_AND_FLOOR,
    NOTE_1,
    NOTE_2,
    RESTORATION,
    Published,
    Shown,
    Table,
    arm,
    heads,
    lens,
    reading,
    replaced,
    together,
    variants,
)

SHOWN = {
    "circuit-discovery": Shown(
        "Which edges carry the difference between two images, and how few of them suffice?",
        "Few of a model's edges carry most of a task's difference, and integrated gradients find them (language "
        "models; Syed et al. 2023, Hanna et al. 2024).",
        (
            Table(
                "Faithfulness of the k edges that are kept: 0 is the fully cut model, 1 the whole one, on pairs the "
                "scores have not seen. Controls: as many edges at random, and those that move their reader most.",
                {order: f"order == '{order}'" for order in ("score", "random", "size")},
                ("edges",),
                part="faithfulness",
            ),
        ),
    ),
    "head-ablation": Shown(
        "Which heads does the answer need?",
        "Most heads can be taken out one by one at little cost (language models; Michel et al. 2019).",
        (
            Table(
                "What taking out one head takes from the margin (right class minus the mean of the others).",
                {**heads("total"), **heads("direct")},
                ("layer", "head"),
                most=6,
            ),
            Table(
                "The first k heads of that order together, on images it has not seen, against k heads at random.",
                {**together("mean"), **together("zero")},
                ("k",),
            ),
            Table("The model as it is.", {"margin": "measure == 'margin'", "accuracy": "measure == 'accuracy'"}),
        ),
    ),
    "aligned-subspace": Shown(
        "Which few directions of CLS carry what the answer goes by?",
        "A learned subspace of few dimensions can carry a variable (language models; Geiger et al. 2024).",
        (
            Table(
                "Share of pairs the search has not seen whose answer becomes the other image's.",
                {
                    "learned": "subspace == 'learned'",
                    "learned, shuffled answers": "subspace == 'shuffled'",
                    "random": "subspace == 'random'",
                    "random, as long a change": "subspace == 'random_same_length'",
                    "greatest differences": "subspace == 'differences'",
                },
                ("dims",),
            ),
            Table(
                "The most and the least a subspace can do.",
                {"the whole token": "subspace == 'whole'", "nothing patched": "subspace == 'none'"},
            ),
        ),
    ),
    "sparse-features": Shown(
        "What does a sparse dictionary keep of the stream?",
        "Dictionaries keep most of the variance at few active features (Cunningham et al. 2023, Gao et al. 2024).",
        (
            Table(
                "By role of token; controls are random directions and principal components of the same sparsity.",
                {
                    f"{what}, {role}": f"measure == '{measure}' and role == '{role}'{more}"
                    for role in ("cls", "patches")
                    for what, measure, more in (
                        ("explained variance", "explained_variance", ""),
                        ("loss recovered, of the mean", "loss_recovered", " and ablation == 'mean'"),
                    )
                },
                ("dictionary",),
            ),
            Table(
                "What the largest features do, beside the same step in a random direction.",
                {
                    f"{edit}, {way}": f"measure == 'effect' and edit == '{edit}' and direction == '{way}'"
                    for edit in ("ablated", "steered")
                    for way in ("own", "random")
                },
                ("feature",),
            ),
        ),
    ),
    "head-words": Shown(
        "In which words do the heads speak, and what writes the answer?",
        "In CLIP the heads of the last four layers write most of what images and texts are compared by, MLPs little "
        "(Gandelsman et al. 2024). This model has no texts: its words are the classes of a ridge head.",
        (
            Table(
                "What a head adds to the margin of the answer.",
                {"adds": "measure == 'contribution' and component == 'attn'"},
                ("layer", "head"),
                most=6,
            ),
            Table(
                "What an MLP adds to it.",
                {"adds": "measure == 'contribution' and component == 'mlp'"},
                ("layer",),
                most=4,
            ),
            Table(
                "Variance of a head's output that its first five words explain, beside as many random directions and "
                "the words of heads with random weights.",
                {
                    variant: f"measure == 'explained' and k == 5 and variant == '{variant}'"
                    for variant in ("texts", "random directions", "random weights")
                },
                ("layer", "head"),
                most=6,
            ),
        ),
    ),
    "register-neurons": Shown(
        "Which neurons make tokens of high norm, and can an added token take them?",
        "About ten neurons make the outliers of large models, and moved to an added token leave the patches alone "
        "(Jiang et al. 2025).",
        (
            Table("Share of patches that are outliers.", variants("outlier_share"), ("layer",)),
            Table("Accuracy.", variants("accuracy")),
        ),
    ),
    "register-controls": Shown(
        "Does the model need what CLS holds, or only that something like it is there?",
        "Registers set to zero cost up to 36.6 points, registers set to their mean, to noise or to another image's "
        "next to nothing, and CLS has no such stand-in (Parodi et al. 2026). This model has no registers.",
        (
            Table("Accuracy, CLS replaced behind every block.", replaced("accuracy", "cls")),
            Table("The control: one patch at a random place.", replaced("accuracy", "as many patches")),
            Table(
                "Untouched, and chance.",
                {"untouched": "measure == 'accuracy' and token.isna()", "chance": "measure == 'chance'"},
            ),
            Table("Cosine of the patches with the untouched ones, CLS replaced.", replaced("patch_cosine", "cls")),
            Table("The same, one patch replaced.", replaced("patch_cosine", "as many patches")),
        ),
    ),
    "cls-causality": Shown(
        "Where is the label decodable from CLS, and where is CLS used?",
        "The label becomes readable gradually, and exchanging CLS costs nothing until the last layers (lab note 1: "
        "DINOv2-base, ImageNet; its values stand beside ours).",
        (
            Table(
                "Accuracy after each block.",
                {
                    "probe on CLS": "measure == 'probe'",
                    "CLS exchanged": "measure == 'shuffled'",
                    "CLS exchanged, CLS alone read": "measure == 'shuffled_cls_readout'",
                },
                ("layer",),
                published={
                    "published probe": Published(NOTE_1, "Accuracy of a probe on CLS", "dinov2"),
                    "published, exchanged": Published(NOTE_1, "Accuracy with CLS exchanged, full readout", "dinov2"),
                    "published, CLS alone": Published(NOTE_1, "Accuracy with CLS exchanged, CLS alone read", "dinov2"),
                },
            ),
            Table(
                "Beside them.",
                {
                    "nothing exchanged": "measure == 'clean'",
                    "nothing exchanged, CLS alone read": "measure == 'clean_cls_readout'",
                    "floor: another image's CLS": "measure == 'floor'",
                    "chance": "measure == 'chance'",
                },
            ),
        ),
    ),
    "restoration": Shown(
        "How fast is the label written back into an exchanged CLS, in its own code?",
        "Much of it is back one block later (lab note 2: ViT-B/16, Tiny-ImageNet; its code refits the probes).",
        (RESTORATION, CLEAN_AND_FLOOR),
    ),
    "restoration-refit": Shown(
        "How fast is the label written back into an exchanged CLS, in any linear code?",
        "As above: this is what the code of lab note 2 does.",
        (RESTORATION, replace(CLEAN_AND_FLOOR, published=AS_PUBLISHED)),
    ),
    "random-readouts": Shown(
        "What can one block write into a CLS that knows nothing of the image?",
        "Trained random tokens read more than the block's own CLS in layers 8 and 9, less in layer 10 (lab note 2: "
        "DINOv2-base, ImageNet; its values stand beside ours).",
        (
            Table(
                "Trained until validation no longer got better, accuracy on test images. Null is the block's own CLS.",
                {mode: arm(mode) for mode in ("null", "replace", "augment", "deterministic")},
                ("layer",),
                published={
                    "published, null": Published(NOTE_2, "The block's own CLS, test", "dinov2"),
                    "published, replace": Published(NOTE_2, "CLS replaced by a random token, test", "dinov2"),
                    "published, augment": Published(NOTE_2, "A random token beside CLS, test", "dinov2"),
                },
            ),
            Table(
                "In closed form: nothing is trained but a ridge probe. CLS replaced; the block's own CLS is what the "
                "others are compared with.",
                {mode: arm(f"replace_{mode}") for mode in ("own_cls", "mean_cls", "gaussian", "one_gaussian")},
                ("layer",),
            ),
            Table(
                "Another image's CLS and the mean patch in its place, and a token added beside it.",
                {
                    mode.replace("_", " ", 1): arm(mode)
                    for mode in ("replace_other_cls", "replace_mean_patch", "augment_gaussian", "augment_mean_cls")
                },
                ("layer",),
            ),
            Table(
                "Differences on the same images, whatever the status of a training (which the sentences above say).",
                {
                    f"layer {at}": f"measure == 'difference' and split == 'test' and layer == {at}"
                    for at in range(8, 12)
                },
                ("mode",),
            ),
            Table("Chance.", {"the most frequent class": "measure == 'chance' and split == 'test'"}),
        ),
        found=order_found,
    ),
    "decodability": Shown(
        "What can a probe read from CLS and from the mean patch?",
        "The label becomes readable from CLS gradually (lab note 1). That says nothing of use.",
        (
            Table(
                "Accuracy after each block, beside probes of permuted labels (brackets: where one more would fall) and "
                "a model with random weights.",
                {
                    f"{role}{said}": reading(measure, role)
                    for role in ("cls", "patches")
                    for said, measure in (
                        ("", "accuracy"),
                        (", permuted labels", "permuted"),
                        (", random weights", "random_weights"),
                    )
                },
                ("layer",),
            ),
            Table("Chance.", {"the most frequent class": "measure == 'chance'"}),
        ),
    ),
    "lenses": Shown(
        "What do the final head, a translator and a probe read from CLS?",
        "The head reads the class in late layers, where a probe reads it earlier (lab note 1: ViT-B/16; Vilas et al. "
        "2023; translators: Belrose et al. 2023).",
        (
            Table(
                "Accuracy after each block; controls are models with random weights.",
                lens("accuracy", "head", "translator", "probe", "random_head", "random_probe"),
                ("layer",),
            ),
            Table("Divergence from the model's answer, in nats.", lens("kl", "head", "translator"), ("layer",)),
            Table("Beside them.", lens("accuracy", "model", "chance")),
        ),
    ),
    "registers": Shown(
        "Which tokens have outlier norms?",
        "Large self-supervised models put a few patches at outlier norms from the middle of the network on; small ones "
        "do not (Darcet et al. 2024).",
        (
            Table(
                "Share of patches that are outliers, beside a model with random weights.",
                {
                    "trained": "measure == 'outlier_share' and variant == 'trained'",
                    "random weights": "measure == 'outlier_share' and variant == 'random weights'",
                },
                ("layer",),
            ),
            Table(
                "What a probe reads behind a block from CLS and from the mean patch.",
                {f"probe on {token}": f"measure == 'probe' and token == '{token}'" for token in ("cls", "patches")},
                ("layer",),
            ),
            Table("Chance.", {"the most frequent class": "measure == 'chance'"}),
        ),
    ),
}
"""By the name of the run."""
