"""`cache MODEL`: activations of a model over images, kept for the analyses that are asked later."""

from __future__ import annotations

import argparse

from analyses.command_line import terminal
from analyses.command_line.computing import computing
from hooked_vit.config.showing import bare, counted


def cache(args: argparse.Namespace) -> int:
    """Load, store, say what is there; what a killed one has begun is gone on with."""
    from analyses.activations.store import store_activations
    from analyses.controls.random_weights import with_random_weights
    from analyses.data import load_data
    from analyses.processes.group import device_here, leads
    from analyses.running.files import check_writable
    from analyses.running.models import check_model, check_prompts, load_models
    from analyses.running.places import size
    from hooked_vit.config.numbers import check_device

    terminal.quiet()
    console = terminal.console()
    folder = check_writable(args.to)
    check_model(args.model)
    check_device(args.device, args.dtype)
    data = load_data(args.data, args.n, seed=args.seed, skip_bad=args.skip_bad)
    check_prompts([args.model], data.class_names)
    how = {**computing(args), "device": device_here(args.device)}
    (model,) = load_models([args.model], class_names=data.class_names, **how).values()
    if args.random_weights is not None:
        model = with_random_weights(model, args.random_weights)
    store = store_activations(
        model, data, args.sites, args.roles, args.cache_dtype or bare(model.dtype), to=folder, layers=args.layers,
        batch_size=args.batch_size, seed=args.seed,
    )  # fmt: skip
    if not leads():
        return 0
    by_hook: dict[str, list[str]] = {}
    for name, shape in store.shapes.items():
        hook, _, role = name.rpartition(".") if name.startswith("blocks.") else (name, "", "")
        by_hook.setdefault(hook, []).append(f"{role} {'×'.join(map(str, shape))}".strip())
    rows = [[hook, ", ".join(held)] for hook, held in by_hook.items()]
    terminal.print_table(console, ["hook", "of an image"], rows, f"{counted(store.n, 'image')} of {data.name}")
    total = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    terminal.say(
        console, f"{size(total)} of {store.about['dtype']}; an analysis reads them with --activations {folder}"
    )
    terminal.say(console, folder / "manifest.json")
    return 0
