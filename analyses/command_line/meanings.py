"""What each option of an analysis does, in a line; what it may be is read from its parameter.

By name, as one thing has one name everywhere; where two analyses ask for it in different senses, by both their names.
"""

from __future__ import annotations

from analyses.running.arguments import PLACES, READ_FROM, Option

MEANINGS = {
    "activations": "folders of `hooked-vit cache` to read from, where the models would be run",
    "among": "whose tokens an image gets: any of the batch, another image's, one's of the same class, of another class",
    "bands": "rings of spatial frequency whose energy is read",
    "batch_size": "images per forward pass",
    "bias": "add the head's bias to the class scores of a token",
    "by_head": "cut the attention of every head in turn as well",
    "cache_dtype": "numbers in which the inputs of blocks are kept on disk",
    "calibration": "images, the first to fit on, that set the threshold of an outlier",
    "class_of_interest": "the class, by its number, that maps are of; each image's label otherwise",
    "components": "principal components that the control `pca` reads",
    "controls": "what is measured beside the probes; none leaves all of them out",
    "cutoff": "norm above which a token is an outlier, in place of --z",
    "decoder": "what reads the answer from the block's output",
    "dictionary": "a sparse dictionary that another tool saved",
    "domain_data": "one more data set: a probe has to tell it from --data",
    "draws": "random draws that serve as the control",
    "embedding": "read the stream in front of the first block too, as layer -1",
    "embedding:counting": "beside --layers, patch and probe in front of the first block too, as depth 0",
    "episodes": "episodes drawn within each group of images",
    "epochs": "passes over the images to fit on, at the most",
    "eps": "least difference of logits by which the share recovered is divided",
    "examples": "images whose maps are kept and drawn",
    "file": "append rows to this file as they are measured, and go on behind them after an interruption",
    "final_ln": "read through the model's final norm and head; without it, through the bare head",
    "fit_data": "images to fit on: probes, heads and means; a part of the data is set aside otherwise",
    "fold_gain": "multiply vectors by the gains of the norms and scales behind them",
    "full_range": "scale class identifiability from 0, not from one over the number of classes",
    "head": "who answers: the model's own head, a ridge head fitted here, or whichever knows the classes",
    "image_head": "the head that image tokens go through, of a model with several",
    "images": "images shown for each memory",
    "k": "principal components that stand in for a dictionary",
    "keep_in": "keep what was computed in this folder, and go on from there",
    "last_layers": "layers, counted from the end, whose heads are described",
    "layers": "layers to measure, counted from 0; negative ones count from the end",
    "layout": "the tool that saved the dictionary",
    "learning_curve": "fit on fewer images as well",
    "lens_images": "images, at the most, that a translator is trained on",
    "lr": "learning rate; several are tried otherwise",
    "max_pairs": "pairs of images that are patched, at the most",
    "memories": "memories shown for each sub-layer; 0 shows none and runs no image",
    "memory_budget": "bytes that the sums of one pass may take",
    "min_images": "images with an outlier at a block that are needed to compare tokens there",
    "modes": "what is put in the place of CLS: all closed forms, all trained readouts, or some by name",
    "n_permutations": "relabelings of the images behind a p-value",
    "n_registers": "tokens that are added",
    "n_shuffles": "shuffles of the labels behind a p-value",
    "neurons": "neurons that are moved",
    "norm": "put tokens through the model's final norm before its head",
    "orders": "by whose importance tokens are removed",
    "other_data": "images of another data set, for `--target dataset`",
    "parts": "the studies that are run",
    "patience": "epochs without anything better before a training ends",
    "permutations": "probes of permuted labels, for the control `permuted`",
    "permuted_heads": "heads with permuted classes, as a control",
    "points": "steps in which tokens are removed, of images with more than 49",
    "probe": "the kind of probe",
    "probe_fit": "fit probes on runs without a shuffle, or on runs with the same one",
    "probe_tokens": "tokens that probes read; those that are exchanged otherwise",
    "queries": "images of each class that are told apart",
    "radii": "radii of the filters, in cycles per picture",
    "random_models": "models with random weights, as a control",
    "reads": "what a ridge head reads: auto, own, or tokens such as cls+patches",
    "reads:register-controls": "whose answers are judged: auto, the model's own head; cls, a ridge head on CLS alone",
    "reference": "the stream an update is compared with: what the sub-layer reads, or what the block reads",
    "repro": "measure as the published code does",
    "roles": "tokens to read: cls, dist, registers, register_0, each_register, patches, patch_0, each_patch, "
    "random_patch, head_input",
    "rule": "when a patch lies on the object: by the share of its pixels, any, the one in its centre or its corner",
    "seed": "seed of all that is random",
    "seeds": "repetitions of what is random, each with a seed of its own",
    "seeds:perturbation-tests": "random orders, as the control",
    "shots": "images per class that the probes of `--orders probe` are fitted on",
    "site": "where: attn_out, block_out",
    "site:sparse-features": "where the dictionary stands, if it does not say: resid_pre, resid_mid, resid_post, "
    "attn_out, mlp_out",
    "start": "with --repro, the layer whose readouts the others begin from",
    "source_data": "images of the domain the model was trained on, measured beside the other domain",
    "steps": "mini-batches a translator is trained on",
    "target": "what is read: label, a column such as count, label=NAME for whether that is there, or dataset",
    "tau": "share of a patch's pixels that have to lie on the object, for `--rule area`",
    "texts": "the words heads are described with, in place of the model's classes",
    "threshold": "pixels of an object above which a patch belongs to it",
    "tokens": "tokens that are looked at",
    "top": "how many of the largest are taken",
    "trainings": "trainings of each readout, with a seed each",
    "variants": "the knockouts: self_only, img2img_zero, img2img_renorm, no_cls, cls_no_img, both, or "
    "'QUERIES>KEYS' of roles of tokens, such as 'dist>patches'",
    "ways": "classes an episode tells apart",
    "window": "cut attention in every so many neighbouring layers as well; 0 cuts it in all at once",
    "z": "robust z of a norm above which a token is an outlier",
}


def meaning(option: Option, analysis: str) -> str:
    """What the option does; of somebody else's analysis, nothing is known here.

    >>> meaning(Option("bands", int, 6), "low-frequency")
    'rings of spatial frequency whose energy is read'
    """
    return MEANINGS.get(f"{option.name}:{analysis}") or MEANINGS.get(option.name, "")


def what_it_may_be(option: Option) -> str:
    """Which values can be typed, in words; empty for text that is anybody's and for a switch.

    >>> what_it_may_be(Option("k", int, 8))
    'a whole number'
    """
    if option.kind in (int, float):
        return option.range.told(option.kind)
    if option.is_data:
        return "as in --data"
    return f"{', '.join(option.choices[:-1])} or {option.choices[-1]}" if option.choices else ""


def default_of(option: Option) -> str:
    """What holds if the option is not given."""
    if option.name in (*PLACES, *READ_FROM):
        return "default: none"
    if option.default in (None, ()):
        return "the analysis chooses if it is not given"
    return f"default: {' '.join(map(str, option.default)) if option.many else option.default}"
