"""The commands that look and measure nothing on a data set: models, interventions, hooks, verify, explore, features."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path

from analyses.command_line import terminal
from analyses.command_line.computing import computing

SCENES = "scenes:test"


def models(args: argparse.Namespace) -> int:
    """`models`: the zoo, and what else can be loaded."""
    from hooked_vit import architectures, published, zoo

    console = terminal.console()
    rows = [
        [f"zoo:{name}", entry["target"], f"{entry['accuracy']['test']:.1%}"]
        for name, entry in sorted(zoo.info().items())
    ]
    title = "Built in: small models trained on digit scenes (accuracy on handwriting never seen in training)"
    terminal.print_table(
        console, ["model", "trained to tell", "test accuracy"], rows or [["the zoo is empty", "", ""]], title
    )
    rows = [[f"published:{name}", published.get(name).about] for name in published.names()]
    terminal.print_table(console, ["model", "what it is"], rows, "As published studies used them, images included")
    rows = [
        [family if i == 0 else "", hf_class, entry.examples.get(hf_class, "–")]
        for family, entry in ((name, architectures.get(name)) for name in architectures.registered())
        for i, hf_class in enumerate(entry.classes)
    ]
    title = "Loadable from the hub or a local folder: checkpoints saved from these classes of transformers or timm"
    terminal.print_table(console, ["family", "class", "a checkpoint people know"], rows, title)
    return 0


def interventions(args: argparse.Namespace) -> int:
    """`interventions`: name, parameters, and what each one does."""
    import interventions as catalogue

    console = terminal.console()
    for name, entry in catalogue.registered().items():
        parameters = [
            p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in entry.signature.parameters.values()
        ]
        terminal.say(console, f"{name}({', '.join(parameters)})", style="bold")
        does = (inspect.getdoc(entry) or "").partition("\n")[0]
        terminal.say(console, f"    {does}")
    return 0


def hooks(args: argparse.Namespace) -> int:
    """`hooks MODEL`: every hook point, from the config alone."""
    from analyses.running.models import PROMPTS, check_model, load_model
    from hooked_vit import HookedViT
    from hooked_vit.loading.checkpoints import without_weights

    terminal.quiet()
    _check_classes(args, [args.model])
    if args.model.startswith(PROMPTS):
        model = load_model(args.model, class_names=args.classes)
    else:
        model = without_weights(HookedViT, check_model(args.model))
    rows = model.describe_hooks(args.image_size)
    terminal.print_table(terminal.console(), ["hook point", "shape", "meaning"], rows)
    return 0


def verify(args: argparse.Namespace) -> int:
    """`verify MODEL`: the original beside ours; status 1 where they differ or a hook is dead."""
    from analyses.running.models import PROMPTS, check_model
    from hooked_vit.config.numbers import check_device
    from hooked_vit.loading.verify import verify

    terminal.quiet()
    if args.model.startswith(PROMPTS):
        raise ValueError(f"a checkpoint is compared with its original: give it without {PROMPTS}, got {args.model!r}")
    console = terminal.console()
    check_device(args.device)
    rows = verify(check_model(args.model), device=args.device, image_size=args.image_size)
    shown = [[row.check, f"{row.worst:.2g}", row.bound, "ok" if row.ok else "FAILED"] for row in rows]
    terminal.print_table(console, ["check", "seen", "must be", ""], shown)
    failed = sum(not row.ok for row in rows)
    terminal.say(console, f"{failed} of {len(rows)} checks failed" if failed else f"all {len(rows)} checks hold")
    return 1 if failed else 0


def explore(args: argparse.Namespace) -> int:
    """`explore MODEL …`: one page on which a reader drags the layer and clicks patches."""
    from analyses import explore, load_data
    from analyses.data.images import open_rgb
    from analyses.running.files import check_writable
    from analyses.running.models import check_model, check_prompts, load_models, short_names
    from analyses.running.places import page_path

    terminal.quiet()
    _check_classes(args, args.model)
    specs, names = _with_texts(args.model, args.text), args.text or args.classes
    out = page_path(args.out, "explorer.html")
    check_writable(out.parent)
    short_names(specs)
    for spec in specs:
        check_model(spec)
    check_prompts(specs, names)
    if args.image:
        pictures = {Path(file).name: open_rgb(Path(file), file) for file in args.image}
    else:
        pictures = dict(zip(("a scene", "another scene"), next(load_data(SCENES, n=2).batches(2)).images, strict=True))
    models = load_models(specs, class_names=names, **computing(args))
    told = len(args.text) if args.text else 5
    page = explore(models, pictures, patches=args.patches, classes=told).save(out)
    terminal.say(terminal.console(), page)
    return 0


def features(args: argparse.Namespace) -> int:
    """`features MODEL --dictionary FOLDER`: a page per feature, with the images in which it is largest."""
    from analyses import feature_pages, load_data
    from analyses.running.files import check_writable
    from analyses.running.models import check_model, load_model
    from interventions import load_sae

    terminal.quiet()
    out = check_writable(args.out)
    check_model(args.model)
    dictionary = load_sae(args.dictionary, args.layout)
    data, model = load_data(args.data, args.n), load_model(args.model, **computing(args))
    pages = feature_pages(model, dictionary, data, activations=args.activations)
    terminal.say(terminal.console(), pages.save(out))
    return 0


def _with_texts(specs: Sequence[str], texts: Sequence[str] | None) -> list[str]:
    """The models whose classes are texts as they stand; without texts the models as they are.

    Raises ValueError for a model whose classes are said already.
    """
    from analyses.running.models import PROMPTS

    if not texts:
        return list(specs)
    if said := [spec for spec in specs if spec.startswith(PROMPTS)]:
        raise ValueError(f"--text are the classes as they stand: give {said[0]!r} without {PROMPTS}, or --classes")
    return [f"{PROMPTS}{spec}={{}}" for spec in specs]


def _check_classes(args: argparse.Namespace, specs: Sequence[str]) -> None:
    """Raises ValueError for class names that no model makes prompts of."""
    from analyses.running.models import PROMPTS

    if args.classes and not any(spec.startswith(PROMPTS) for spec in specs):
        raise ValueError(f"--classes are for a model with a text tower, spelled {PROMPTS}MODEL; here is {specs[0]!r}")
