"""Path patching against brute force, and the two sums it must agree with: all paths, and all senders."""

from __future__ import annotations

import pytest
import torch

from analyses.questions.patching.activation_patching import activation_patching
from analyses.questions.patching.path_patching import Receiver, Sender, all_components, path_patching
from hooked_vit import HookedViT
from tests.tiny import FAMILIES, make, pixels, tiny

CLASSES = (torch.zeros(3, dtype=torch.long), torch.ones(3, dtype=torch.long))
KW = {"classes": CLASSES, "eps": 1e-12}


def pair(model: HookedViT) -> tuple[torch.Tensor, torch.Tensor]:
    return pixels(model), pixels(model, seed=1)


def brute(model: HookedViT, base, donor, sender, receiver, mlps: str, tokens) -> torch.Tensor:
    """Wang et al.'s three runs: two caches; one with the sender's new words and the rest frozen, to see what the
    receiver reads; one with the receiver reading that."""
    ours, theirs = (model.run_with_cache(x)[1] for x in (base, donor))
    site, layer, head = sender
    n = model.cfg.n_layers

    def say(act, hook):
        new = act.clone()
        if site == "z":
            new[:, :, head] = theirs[hook.name][:, :, head]
        else:
            new = theirs[hook.name]
        return new

    def freeze(act, hook):
        return ours[hook.name]

    spoken = {"z": "attn.hook_z", "mlp_out": "hook_mlp_out", "embed": "hook_resid_pre"}[site]
    first = layer if site != "embed" else -1
    hooks = [(f"blocks.{max(layer, 0)}.{spoken}", say)]
    if site == "embed":
        hooks = [("blocks.0.hook_resid_pre", say)]
    frozen = [f"blocks.{l}.attn.hook_z" for l in range(first + 1, n)]
    if mlps == "frozen":
        frozen += [f"blocks.{l}.hook_mlp_out" for l in range(first + (site == "mlp_out"), n) if l >= 0]
    hooks += [(name, freeze) for name in frozen]
    heard: dict[str, torch.Tensor] = {}
    kind, where, reading_head = receiver
    name = {"q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v", "mlp_in": "hook_mlp_in", "logits": None}[kind]
    if name is None:
        return model.run_with_hooks(base, fwd_hooks=hooks)
    name = f"blocks.{where}.{name}"
    model.run_with_hooks(base, fwd_hooks=[*hooks, (name, lambda act, hook: heard.update(x=act))])

    def listen(act, hook):
        new = act.clone()
        for t in tokens:
            if reading_head is None:
                new[:, t] = heard["x"][:, t]
            else:
                new[:, t, reading_head] = heard["x"][:, t, reading_head]
        return new

    return model.run_with_hooks(base, fwd_hooks=[(name, listen)])


def recovery(model: HookedViT, base, donor, logits) -> float:
    ends = [x[:, 0] - x[:, 1] for x in (model(base), model(donor), logits)]
    return ((ends[2] - ends[0]) / (ends[1] - ends[0])).mean().item()


@pytest.mark.parametrize(
    ("family", "mlps", "direction"),
    [("vit", "frozen", "noise"), ("vit", "recomputed", "denoise"), ("beit-mean-both", "recomputed", "noise")],
)
def test_a_path_is_what_brute_force_says(family: str, mlps: str, direction: str) -> None:
    model = make(family)
    clean, corrupt = pair(model)
    base, donor = (clean, corrupt) if direction == "noise" else (corrupt, clean)
    tokens = [0, 5, 9]
    cases = [
        (Sender("attn_out", 0, heads=1), ("z", 0, 1)),
        (Sender("mlp_out", 0), ("mlp_out", 0, None)),
        (Sender("embed"), ("embed", 0, None)),
    ]
    for receiver, told in [
        *((Receiver(kind, 1, heads=2, tokens=tokens), (kind, 1, 2)) for kind in "qkv"),
        (Receiver("mlp_in", 1, tokens=tokens), ("mlp_in", 1, None)),
        (Receiver("logits"), ("logits", 1, None)),
    ]:
        frame = path_patching(
            model,
            clean,
            corrupt,
            senders=[s for s, _ in cases],
            receiver=receiver,
            mlps=mlps,
            direction=direction,
            **KW,
        ).frame
        for value, (_, spoken) in zip(frame.value, cases, strict=True):
            logits = brute(model, base, donor, spoken, told, mlps, tokens)
            assert value == pytest.approx(recovery(model, base, donor, logits), abs=1e-10), (spoken, told)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_senders_together_are_the_whole_donor_run(family: str) -> None:
    model = make(family)
    frame = path_patching(
        model, *pair(model), receiver=Receiver("logits"), senders=[tuple(all_components(model)), Sender("embed")], **KW
    ).frame
    assert frame.value[0] == pytest.approx(1, abs=1e-10)
    assert frame.value[1] != pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_paths_together_are_the_activation_patch(family: str) -> None:
    model = make(family)
    behind = [*(Receiver(kind, 1) for kind in "qkv"), Receiver("mlp_in", 1), Receiver("logits")]
    for sender, receivers, site, heads in (
        (Sender("mlp_out", 0), behind, "mlp_out", None),
        (Sender("attn_out", 0, heads=(1, 2)), [Receiver("mlp_in", 0), *behind], "z", (1, 2)),
        (Sender("mlp_out", 0), [Receiver("resid_post", 0)], "mlp_out", None),
        (Sender("embed"), [Receiver("resid_pre", 0)], "resid_pre", None),
    ):
        path = path_patching(model, *pair(model), senders=[sender], receiver=receivers, **KW).frame.value[0]
        whole = activation_patching(
            model, *pair(model), sites=site, layers=0, heads=heads, tokens="all", direction="noise", **KW
        ).frame.value[0]
        assert path == pytest.approx(whole, abs=1e-10), (sender.name, site)


def test_sender_tokens_are_those_of_the_patch() -> None:
    model = make("vit")
    mask = torch.rand(3, model.tokens.n_tokens, generator=torch.Generator().manual_seed(0)) < 0.4
    path = path_patching(
        model,
        *pair(model),
        senders=[Sender("mlp_out", 1, tokens=mask)],
        receiver=Receiver("resid_post", 1),
        batch_size=2,
        **KW,
    )
    whole = activation_patching(model, *pair(model), sites="mlp_out", layers=1, tokens=mask, direction="noise", **KW)
    assert path.frame.value[0] == pytest.approx(whole.frame.value[0], abs=1e-10)
    only_cls = [Receiver("logits", tokens=t) for t in ("cls", "patches")]
    said = [
        path_patching(model, *pair(model), senders=[Sender("embed")], receiver=r, **KW).frame.value[0] for r in only_cls
    ]
    assert said == [0, 0]  # CLS is the same parameter in both, and a CLS readout reads no patch


def test_an_mlp_that_sends_is_not_recomputed() -> None:
    model = make("vit")
    both = (Sender("attn_out", 0), Sender("mlp_out", 0))
    receiver = Receiver("logits")
    frozen, recomputed = (
        path_patching(model, *pair(model), senders=[both], receiver=receiver, mlps=m, **KW).frame.value[0]
        for m in ("frozen", "recomputed")
    )
    layer1 = path_patching(
        model, *pair(model), senders=[(*both, Sender("mlp_out", 1))], receiver=receiver, mlps="recomputed", **KW
    )
    by_hand = path_patching(model, *pair(model), senders=[(*both, Sender("mlp_out", 1))], receiver=receiver, **KW)
    assert frozen != pytest.approx(recomputed, abs=1e-6)
    assert layer1.frame.value[0] == pytest.approx(by_hand.frame.value[0], abs=1e-12)


def test_named_senders_are_those_in_front() -> None:
    model = make("vit")
    heads = path_patching(model, *pair(model), receiver=Receiver("k", 1, heads=0, tokens="cls"), **KW).frame
    assert heads.sender.tolist() == ["L0H0", "L0H1", "L0H2", "L0H3"]
    assert set(heads.receiver) == {"L1.k[0]@cls"}
    parts = path_patching(model, *pair(model), receiver=Receiver("mlp_in", 1), senders="components", **KW).frame
    assert parts.sender.tolist() == ["embed", "L0.attn_out", "L0.mlp_out", "L1.attn_out"]
    narrow = path_patching(
        model, *pair(model), receiver=Receiver("mlp_in", 1), senders="components", fold_tokens=1, **KW
    )
    assert narrow.frame.value.tolist() == pytest.approx(parts.value.tolist(), abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"senders": [Sender("mlp_out", 1)], "receiver": Receiver("q", 1)}, "L1.mlp_out is behind L1.q"),
        ({"senders": [Sender("attn", 0)]}, "did you mean 'attn_out'"),
        ({"senders": [Sender("mlp_out", 0, heads=1)]}, "mlp_out has no heads"),
        ({"senders": [Sender("attn_out", 5)]}, "layers are 0 to 1"),
        ({"senders": "neurons"}, "senders are"),
        ({"senders": []}, "at least one sender"),
        ({"receiver": Receiver("q", 1, tokens="dist")}, "no 'dist' token"),
        ({"receiver": [Receiver("resid_pre", 1), Receiver("logits")]}, "logits included"),
        ({"mlps": "thawed"}, "frozen, recomputed"),
        ({"direction": "both"}, "denoise, noise"),
        ({"corrupt": torch.zeros(3, 3, 48, 40)}, "one shape"),
    ],
)
def test_bad_input_is_refused(change: dict, message: str) -> None:
    model = tiny("vit")[1]
    clean, corrupt = pair(model)
    with pytest.raises(ValueError, match=message):
        path_patching(model, clean, change.pop("corrupt", corrupt), **{"receiver": Receiver("logits"), **change})
