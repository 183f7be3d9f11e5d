"""Activation patching: the oracles of methods section 24 on every family, and patches against plain hooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from analyses import activation_patching, attribution_patching, logit_attribution, path_patching
from analyses.activations.token_groups import object_groups, token_masks
from analyses.questions.patching.figures import patch_maps, patching_map
from analyses.questions.patching.pair_tally import Tally
from analyses.questions.patching.patch_sites import INNER, Patch, axes, has_heads, list_patches
from analyses.questions.patching.patched_runs import patched_runs
from analyses.questions.patching.patching_metrics import Reference, as_metrics, recovery, reference
from analyses.questions.patching.paths import Receiver
from analyses.running.catalogue import get_analysis
from hooked_vit import HookedViT, TokenLayout
from interventions import readout
from tests.tiny import FAMILIES, make, pixels, tiny

CLASSES = (torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long))
FAST = ("vit", "beit-mean-both", "registers")


def pair(model: HookedViT, n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    return pixels(model, n=n), pixels(model, n=n, seed=1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_everything_recovers_exactly_one_and_nothing_exactly_zero(family: str, direction: str) -> None:
    model = tiny(family)[1]  # float32: exact, not to rounding, although patches are folded into batches
    nothing = torch.zeros(model.tokens.n_tokens, dtype=torch.bool)
    for cumulative in (False, True):
        frame = activation_patching(
            model,
            *pair(model),
            sites=("resid", "resid_pre", "resid_mid", "resid_post"),
            classes=CLASSES,
            eps=1e-9,
            tokens={"all": "all", "nothing": nothing},
            direction=direction,
            cumulative=cumulative,
        ).frame
        assert frame.n_dropped.eq(0).all()
        assert frame[frame.group == "all"].value.eq(1).all()
        assert frame[frame.group == "nothing"].value.eq(0).all()
        assert frame[frame.site == "resid"].layer.max() == model.cfg.n_layers


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_patched_at_any_site_changes_nothing(family: str) -> None:
    model = tiny(family)[1]
    nothing = {"nothing": torch.zeros(3, model.tokens.n_tokens, dtype=torch.bool)}
    kw = {"sites": tuple(INNER), "tokens": nothing, "classes": CLASSES, "eps": 1e-9}
    frame = activation_patching(model, *pair(model), **kw).frame
    assert frame.value.eq(0).all()
    assert frame.n_empty.eq(3).all()


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "clip-classifier"])
def test_with_a_cls_readout_only_cls_counts_behind_the_last_block(family: str) -> None:
    model = tiny(family)[1]
    under = readout("cls") if "cls" in model.cfg.sources else None
    if under is None:
        model = make(family, torch.float32)
        model.set_readout_(sources=("cls",))
        model.set_head_(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(5))
    last = model.cfg.n_layers
    frame = activation_patching(
        model,
        *pair(model),
        sites="resid",
        layers=(0, last),
        tokens=["cls", "patches"],
        classes=CLASSES,
        eps=1e-9,
        direction="both",
        under=under,
    ).frame
    value = frame.set_index(["layer", "group", "direction"]).value
    for way in ("denoise", "noise"):
        assert value[last, "patches", way] == 0
        assert value[last, "cls", way] == 1
        assert value[0, "cls", way] == 0  # the CLS parameter is the same in both images
        assert value[0, "patches", way] == 1


def test_cls_at_the_embedding_is_the_same_in_both_images() -> None:
    for family in FAMILIES:
        model = tiny(family)[1]
        frame = activation_patching(model, *pair(model), sites="resid", layers=0, tokens="cls", classes=CLASSES).frame
        assert frame.value.eq(0).all(), family


def plain(model: HookedViT, base, cache, site: str, layer: int, mask, heads) -> torch.Tensor:
    """The same patch by hand: one hook, one whole run."""
    name = f"blocks.{layer}.{INNER[site][0] if site in INNER else f'hook_{site}'}"

    def edit(act, hook):
        new = act.clone()
        for b, t in mask.nonzero().tolist():
            place = (b, heads, t) if axes(site) == "scores" else (b, t, heads) if axes(site) == "heads" else (b, t)
            new[place] = cache[name][place]
        return new

    return model.run_with_hooks(base, fwd_hooks=[(name, edit)])


@pytest.mark.parametrize(("family", "fold_tokens"), [(family, 4096) for family in FAST] + [("vit", 1), ("vit", 400)])
def test_every_site_agrees_with_a_plain_hook(family: str, fold_tokens: int) -> None:
    model = make(family)
    clean, corrupt = pair(model)
    cache = model.run_with_cache(clean)[1]
    some = torch.rand(3, model.tokens.n_tokens, generator=torch.Generator().manual_seed(0)) < 0.1
    for site in ("resid_pre", "resid_post", *INNER):
        heads = [1, 3] if has_heads(site) else None
        patches = list_patches(model, site, None, {"some": some}, heads)
        runs = patched_runs(
            model,
            corrupt,
            clean,
            patches,
            {"some": some},
            fold_tokens=fold_tokens,
            memory_budget=1 if fold_tokens == 1 else 2**30,
        )
        got: dict[Patch, list] = {}
        for run in runs:
            got.setdefault(run.patch, []).append(run.logits)
        for patch in patches:
            want = plain(model, corrupt, cache, site, patch.layer, some, heads)
            torch.testing.assert_close(torch.cat(got[patch]), want, rtol=0, atol=1e-12)


def test_cumulative_patches_act_at_every_layer_before_too() -> None:
    model = make("vit")
    clean, corrupt = pair(model)
    masks = token_masks(model.tokens, 3, {"some": [0, 3, 7]})
    for site, hook in (("resid_post", "hook_resid_post"), ("attn_out", "hook_attn_out"), ("z", "attn.hook_z")):
        cache = model.run_with_cache(clean)[1]

        def edit(act, hook):
            new = act.clone()
            new[:, [0, 3, 7]] = cache[hook.name][:, [0, 3, 7]]  # noqa: B023
            return new

        hooks = [(f"blocks.{layer}.{hook}", edit) for layer in (0, 1)]
        want = model.run_with_hooks(corrupt, fwd_hooks=hooks)
        run = next(iter(patched_runs(model, corrupt, clean, [Patch(site, 1, "some")], masks, cumulative=True)))
        torch.testing.assert_close(run.logits, want, rtol=0, atol=1e-12)


def test_other_image_sizes_have_their_own_tokens() -> None:
    model = make("vit")
    clean, corrupt = (pixels(model, (48, 40), seed=s) for s in (0, 1))
    frame = activation_patching(model, clean, corrupt, sites="resid", tokens=["cls", "all"], classes=CLASSES).frame
    assert frame[frame.group == "all"].value.eq(1).all()
    with pytest.raises(ValueError, match="out of range"):
        activation_patching(model, clean, corrupt, tokens=[121], classes=CLASSES)


def test_metrics_by_hand() -> None:
    base, donor = torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    patched = torch.tensor([[1.5, 1.0], [3.0, 0.0]])
    ref = reference("denoise", base, donor, (torch.tensor([0, 0]), torch.tensor([1, 1])))
    tally = Tally(as_metrics(["recovery", "logit_diff", "flip_rate", "expected_value", "kl", recovery("kl")]))
    tally.add("patch", patched, ref)
    rows = {row["metric"]: row for _, row in tally.rows()}
    assert rows["recovery"]["value"] == (0.5 + 2) / 4
    assert (rows["recovery"]["n"], rows["recovery"]["n_dropped"]) == (1, 1)
    assert rows["logit_diff"]["value"] == (0.5 + 3) / 2
    assert rows["logit_diff"]["base"] == -1
    assert rows["logit_diff"]["donor"] == 1
    assert rows["flip_rate"]["value"] == 1
    assert rows["flip_rate"]["low"] < 0.7  # Wilson's, not a point
    sigma = torch.softmax(patched.double(), -1)[:, 1].mean().item()
    assert rows["expected_value"]["value"] == pytest.approx(sigma)
    p, q = donor[0].double().softmax(0), patched[0].double().softmax(0)
    p2, q2 = donor[1].double().softmax(0), patched[1].double().softmax(0)
    kl = [float((a * (a / b).log()).sum()) for a, b in ((p, q), (p2, q2))]
    assert rows["kl"]["value"] == pytest.approx(np.mean(kl))
    assert rows["kl"]["donor"] == 0
    unpatched = float((p * (p / base[0].double().softmax(0)).log()).sum())
    assert rows["recovery of kl"]["value"] == pytest.approx(1 - kl[0] / unpatched)


def test_a_constant_metric_is_counted_not_divided_by() -> None:
    model = tiny("vit")[1]

    def constant(logits: torch.Tensor, ref: Reference) -> torch.Tensor:
        return torch.ones(len(logits))

    result = activation_patching(model, *pair(model), tokens="cls", metric=[recovery(constant), constant])
    rows = result.frame.groupby("metric").first()
    assert np.isnan(rows.value["recovery of constant"])
    assert rows.n_dropped["recovery of constant"] == 3
    assert rows.n["recovery of constant"] == 0
    assert rows.value["constant"] == 1
    assert "3 of 3 pairs" in result.meta["notes"][0]
    # two images of one class: the default logit difference is 0 in both runs
    same = activation_patching(model, *pair(model), tokens="cls", classes=(CLASSES[0], CLASSES[0]))
    assert same.frame.n_dropped.eq(3).all()


def test_a_metric_of_ones_own_sees_logits_and_both_runs() -> None:
    model = make("vit")
    clean, corrupt = pair(model)

    def distance(logits: torch.Tensor, ref: Reference) -> torch.Tensor:
        torch.testing.assert_close(ref.base, model(corrupt), rtol=0, atol=1e-12)
        torch.testing.assert_close(ref.donor, model(clean), rtol=0, atol=1e-12)
        assert ref.clean.tolist() == [4, 3, 2]
        return (logits - ref.donor).norm(dim=-1)

    classes = (torch.tensor([4, 3, 2]), torch.tensor([0, 0, 0]))
    frame = activation_patching(model, clean, corrupt, tokens="all", metric=distance, classes=classes).frame
    assert frame.value.abs().max() < 1e-12
    assert set(frame.metric) == {"distance"}


def test_heads_are_one_group_or_each_its_own() -> None:
    model = make("vit")
    both = activation_patching(model, *pair(model), sites="z", heads="each", tokens="all", classes=CLASSES).frame
    assert both["head"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    one = activation_patching(model, *pair(model), sites="z", heads=2, tokens="all", classes=CLASSES).frame
    assert one["head"].tolist() == [2, 2]
    assert one.value.tolist() == pytest.approx(both[both["head"] == 2].value.tolist())


def test_results_do_not_depend_on_memory_or_folding() -> None:
    model = make("dinov2")
    kw = {"sites": ("resid", "z"), "tokens": ["cls", "patches"], "classes": CLASSES, "direction": "both"}
    wide = activation_patching(model, *pair(model), **kw).frame
    narrow = activation_patching(model, *pair(model), **kw, memory_budget=1, fold_tokens=1).frame
    key = ["site", "layer", "group", "direction"]
    a, b = (frame.set_index(key).sort_index().value for frame in (wide, narrow))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corrupt": "wide"}, "one shape"),
        ({"corrupt": "fewer"}, "one shape"),
        ({"sites": "resid_poste"}, "did you mean 'resid_post'"),
        ({"layers": 7}, "layers 0 to 1"),
        ({"tokens": "registers"}, "no 'registers' token"),
        ({"tokens": torch.ones(3, 9, dtype=torch.bool)}, "a mask of tokens is boolean"),
        ({"heads": 0}, "resid_post has no heads"),
        ({"sites": "z", "heads": 9}, "heads are 0 to 3"),
        ({"metric": "recovry"}, "did you mean 'recovery'"),
        ({"metric": lambda logits, ref: logits}, "one number per pair"),
        ({"direction": "sideways"}, "direction is denoise, noise, both"),
        ({"classes": (torch.full((3,), 9), CLASSES[0])}, "classes are 0 to 4"),
        ({"eps": 0.0}, "above 0"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    model = tiny("vit")[1]
    clean, corrupt = pair(model)
    other = {"wide": pixels(model, (48, 40)), "fewer": corrupt[:2]}.get(change.pop("corrupt", ""), corrupt)
    with pytest.raises(ValueError, match=message):
        activation_patching(model, clean, other, **change)
    assert not any(point._forward_hooks for point in model.hook_points())


def test_attached_hooks_are_refused() -> None:
    model = make("vit", torch.float32)
    watching = model.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda x, hook: x)])
    with watching, pytest.raises(RuntimeError, match="under"):
        activation_patching(model, *pair(model))


def test_object_groups_divide_the_patches() -> None:
    layout = TokenLayout.native(("cls",), (2, 2))
    objects = torch.zeros(2, 4, 4, dtype=torch.long)
    objects[0, 0, 0] = 1  # patch 0, which object 2 touches too
    objects[0, 1, 1:3] = 2  # patches 0 and 1
    objects[1, 3, 3] = 1  # patch 3 only
    groups = object_groups(objects, torch.tensor([2, 1]), layout)
    shown = {name: [m.nonzero().flatten().tolist() for m in mask] for name, mask in groups.items()}
    assert shown["removed"] == [[1, 2], [4]]
    assert shown["others"] == [[], []]
    assert shown["background"] == [[3, 4], [1, 2, 3]]
    assert shown["cls"] == [[0], [0]]
    assert shown["random"][0] == [3, 4]
    assert len(shown["random"][1]) == 1
    assert shown["random"][1][0] in (1, 2, 3)
    again = object_groups(objects[1:], torch.tensor([1]), layout, index=torch.tensor([1]))
    assert again["random"].equal(groups["random"][1:])  # the same whatever the batch
    strict = object_groups(objects, torch.tensor([2, 1]), layout, threshold=1)
    assert not strict["removed"].any()


def test_maps_of_layers_tokens_heads_and_patches() -> None:
    model = tiny("registers")[1]
    each = activation_patching(model, *pair(model), sites="resid", tokens="each", classes=CLASSES)
    figure = patching_map(each)
    assert figure.data[0].z.shape == (3, model.tokens.n_tokens)
    assert figure.data[0].zmid == 0
    pictures = patch_maps(each, model.tokens.grid, n_prefix=model.tokens.n_prefix)
    assert [trace.z.shape for trace in pictures.data] == [model.tokens.grid] * 3
    place = each.frame[(each.frame.layer == 1) & (each.frame.group == str(model.tokens.n_prefix + 9))]
    assert pictures.data[1].z[9 // 4, 9 % 4] == place.value.item()
    heads = activation_patching(model, *pair(model), sites="z", heads="each", tokens="all", classes=CLASSES)
    assert patching_map(heads).data[0].z.shape == (2, 4)
    with pytest.raises(ValueError, match="has the sites z"):
        patching_map(heads, site="resid")
    with pytest.raises(ValueError, match='need tokens="each"'):
        patch_maps(heads, model.tokens.grid, n_prefix=4)


def test_patching_results_draw_themselves() -> None:
    _, model = tiny("vit")
    clean, corrupt = pair(model)
    results = [
        activation_patching(model, clean, corrupt),
        attribution_patching(model, clean, corrupt, check=0),
        path_patching(model, clean, corrupt, receiver=Receiver("mlp_in", 1), senders="components"),
        logit_attribution(model, clean, classes=0),
    ]
    for result in results:
        assert len(result.figure().data) > 0, result.meta["analysis"]
        assert not get_analysis(result.meta["analysis"]).is_command
