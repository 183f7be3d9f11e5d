"""A planted dictionary in every layout other tools save: what is loaded computes what theirs does, or is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from interventions import Sae, load_sae

D, F = 6, 10
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(5, 3, D, generator=DRAW) + 1
W_ENC, W_DEC = torch.randn(D, F, generator=DRAW), torch.randn(F, D, generator=DRAW)
B_ENC, B_DEC, B_MAG, R_MAG = (torch.randn(n, generator=DRAW) * 0.3 for n in (F, D, F, F))
THRESHOLD = torch.rand(F, generator=DRAW)
PLAIN = {"W_enc": W_ENC, "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
GATED = {"W_enc": W_ENC, "W_dec": W_DEC, "b_dec": B_DEC, "b_gate": B_ENC, "b_mag": B_MAG, "r_mag": R_MAG}


def top(k: int, values: Tensor) -> Tensor:
    return torch.where(values >= values.topk(k, dim=-1).values[..., -1:], values, 0.0)


def gated(x: Tensor) -> Tensor:
    return (x @ W_ENC + B_ENC > 0) * (x @ (W_ENC * R_MAG.exp()) + B_MAG).relu()


# what an input becomes in front of the encoder, and a reconstruction behind the decoder
def plain(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    return x, lambda out: out


def layer_norm(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    mean = x.mean(-1, keepdim=True)
    std = (x - mean).std(-1, keepdim=True)
    return (x - mean) / (std + 1e-5), lambda out: out * std + mean


def rescaled(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    factor = D**0.5 / x.norm(dim=-1, keepdim=True)
    return x * factor, lambda out: out / factor


def by(mean: Tensor, scale: float, x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    return (x - mean) / scale, lambda out: out * scale + mean


def apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Safetensors saves no memory twice."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def saelens(folder: Path, tensors: dict[str, Tensor], **cfg: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    about = {"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny", "sae_lens_version": "6.54.12"}
    save_file(apart(tensors), folder / "sae_weights.safetensors")
    size = {"d_in": D, "d_sae": F, "dtype": "float32", "device": "cpu", "normalize_activations": "none"}
    fields = size | {"apply_b_dec_to_input": True, "reshape_activations": "none", "metadata": about} | cfg
    (folder / "cfg.json").write_text(json.dumps(fields))
    return folder


def prisma(folder: Path, tensors: dict[str, Tensor], name: str = "weights.pt", **cfg: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (save_file if name.endswith("safetensors") else torch.save)(apart(tensors), folder / name)
    fields = {"d_in": D, "expansion_factor": F / D, "hook_point_layer": 1, "layer_subtype": "hook_mlp_out"}
    fields |= {"architecture": "standard", "activation_fn_str": "relu", "activation_fn_kwargs": {}}
    fields |= {"normalize_activations": "layer_norm", "_dtype": "float32", "_device": "cuda", "lr": 0.001}
    if "d_sae" in cfg:
        del fields["expansion_factor"]
    (folder / "config.json").write_text(json.dumps(fields | cfg))
    return folder


def saev(folder: Path, tensors: dict[str, Tensor], kind: str = "TopK", header: Any = None, **cfg: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    params = {"key": "x", "sparsity": {"cls": "NoSparsity", "params": {}}, "aux": {"cls": "AuxK", "params": {}}}
    activation = {"cls": kind, "params": params if kind == "Relu" else params | {"top_k": 3}}
    fields = {"d_model": D, "d_sae": F, "activation": activation, "normalize_w_dec": False} | cfg
    header = header or {"schema": 5, "cfg": fields, "commit": "abc", "lib": "1"}
    with (folder / "sae.pt").open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        torch.save(tensors, file)
    return folder / "sae.pt"


def overcomplete(folder: Path, name: str = "model.safetensors", **more: Tensor) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"encoder.final_block.0.weight": W_ENC.T.contiguous(), "encoder.final_block.0.bias": B_ENC}
    tensors |= {"dictionary._weights": W_DEC, "dictionary.multiplier": torch.tensor(0.5)} | more
    (save_file if name.endswith("safetensors") else torch.save)(apart(tensors), folder / name)
    return folder / name


LENGTHS = W_DEC.norm(dim=-1)
UNIT = W_DEC / (W_DEC.norm(dim=1, keepdim=True) + 1e-8) * torch.tensor(0.5).exp()
RAISED = {"thresholds": THRESHOLD.log()}
FIRST = {"d_vit": D, "exp_factor": 2, "sparsity_coeff": 4e-4, "n_reinit_samples": 9, "ghost_grads": False, "seed": 0}

# name -> (file, layout, settings, frame, activations of what the encoder reads, decoder, what is subtracted and added)
Loads = dict[str, tuple[Callable[[Path], Path], str, dict[str, Any], Any, Callable[[Tensor], Tensor], Tensor, Any, Any]]
LOADS: Loads = {
    "saelens/standard": (
        lambda f: saelens(f, PLAIN, architecture="standard"),
        *("saelens", {}, plain, lambda x: (x @ W_ENC + B_ENC).relu(), W_DEC, B_DEC, B_DEC),
    ),
    "saelens/not centred, layer norm": (
        lambda f: saelens(
            f, PLAIN, architecture="standard", apply_b_dec_to_input=False, normalize_activations="layer_norm"
        ),
        *("saelens", {}, layer_norm, lambda x: (x @ W_ENC + B_ENC).relu(), W_DEC, 0.0, B_DEC),
    ),
    "saelens/scaled": (
        lambda f: saelens(
            f, PLAIN, architecture="standard", normalize_activations="expected_average_only_in", dtype="torch.float32"
        ),
        *("saelens", {"input_scale": 2.5}, partial(by, torch.zeros(D), 2.5)),
        *(lambda x: (x @ W_ENC + B_ENC).relu(), W_DEC, B_DEC, B_DEC),
    ),
    "saelens/topk": (
        lambda f: saelens(f, PLAIN, architecture="topk", k=3, normalize_activations="constant_norm_rescale"),
        *("saelens", {}, rescaled, lambda x: top(3, x @ W_ENC + B_ENC).relu(), W_DEC, B_DEC, B_DEC),
    ),
    "saelens/topk by length": (
        lambda f: saelens(f, PLAIN, architecture="topk", k=3, rescale_acts_by_decoder_norm=True),
        *("saelens", {}, plain, lambda x: top(3, (x @ W_ENC + B_ENC) * LENGTHS).relu()),
        *(W_DEC / LENGTHS[:, None], B_DEC, B_DEC),
    ),
    "saelens/jumprelu": (
        lambda f: saelens(f, PLAIN | {"threshold": THRESHOLD}, architecture="jumprelu"),
        *("saelens", {}, plain),
        *(lambda x: torch.where(x @ W_ENC + B_ENC > THRESHOLD, x @ W_ENC + B_ENC, 0.0), W_DEC, B_DEC, B_DEC),
    ),
    "saelens/gated": (
        lambda f: saelens(f, GATED, architecture="gated"),
        *("saelens", {}, plain, gated, W_DEC, B_DEC, B_DEC),
    ),
    "prisma/relu": (
        lambda f: prisma(f, PLAIN, d_sae=F),
        *("prisma", {}, layer_norm, lambda x: (x @ W_ENC + B_ENC).relu(), W_DEC, B_DEC, B_DEC),
    ),
    "prisma/tanh, safetensors": (
        lambda f: prisma(
            f, PLAIN, "weights.safetensors", d_sae=F, activation_fn_str="tanh-relu", normalize_activations="none"
        ),
        *("prisma", {}, plain, lambda x: (x @ W_ENC + B_ENC).relu().tanh(), W_DEC, B_DEC, B_DEC),
    ),
    "prisma/topk": (
        lambda f: prisma(f, PLAIN, d_sae=F, activation_fn_str="topk", activation_fn_kwargs={"k": 3}),
        *("prisma", {}, layer_norm, lambda x: top(3, x @ W_ENC + B_ENC).relu(), W_DEC, B_DEC, B_DEC),
    ),
    "prisma/gated": (
        lambda f: prisma(f, GATED | {"b_enc": B_MAG}, d_sae=F, architecture="gated"),
        *("prisma", {}, layer_norm, gated, W_DEC, B_DEC, B_DEC),
    ),
    "saev/relu": (
        lambda f: saev(f, PLAIN, "Relu"),
        *("saev", {}, plain, lambda x: (x @ W_ENC + B_ENC).relu(), W_DEC, 0.0, B_DEC),
    ),
    "saev/topk keeps what is below zero": (
        lambda f: saev(f, PLAIN | {"b_enc": B_ENC - 9}),
        *("saev", {}, plain, lambda x: top(3, x @ W_ENC + B_ENC - 9), W_DEC, 0.0, B_DEC),
    ),
    "saev/batchtopk": (
        lambda f: saev(f, PLAIN | {"activation.threshold": torch.tensor(0.7)}, "BatchTopK"),
        *("saev", {}, plain),
        *(lambda x: torch.where(x @ W_ENC + B_ENC > 0.7, x @ W_ENC + B_ENC, 0.0), W_DEC, 0.0, B_DEC),
    ),
    "saev/the first, with what its activations were normalised by": (
        lambda f: saev(f, _first(), header=FIRST),
        *("saev", {"input_mean": B_DEC * 2, "input_scale": 3.0}, partial(by, B_DEC * 2, 3.0)),
        *(lambda x: (x @ _first()["W_enc"] + _first()["b_enc"]).relu(), torch.cat([W_DEC, W_DEC[:2]]), B_DEC, B_DEC),
    ),
    "overcomplete/topk": (
        overcomplete,
        *("overcomplete", {"activation": "topk", "k": 3}, plain),
        *(lambda x: top(3, (x @ W_ENC + B_ENC).relu()), UNIT, 0.0, 0.0),
    ),
    "overcomplete/relu, with torch": (
        lambda f: overcomplete(f, "model.pth"),
        *("overcomplete", {"activation": "relu", "normalization": "identity"}, plain),
        *(lambda x: (x @ W_ENC + B_ENC).relu(), W_DEC * torch.tensor(0.5).exp(), 0.0, 0.0),
    ),
    "overcomplete/normalised": (
        overcomplete,
        *("overcomplete", {"activation": "relu", "input_mean": B_DEC, "input_scale": 2.0}, partial(by, B_DEC, 2.0)),
        *(lambda x: (x @ W_ENC + B_ENC).relu(), UNIT, 0.0, 0.0),
    ),
    "overcomplete/jump": (
        lambda f: overcomplete(f, **RAISED),
        *("overcomplete", {"activation": "jump"}, plain),
        *(lambda x: torch.where(x @ W_ENC + B_ENC > THRESHOLD, x @ W_ENC + B_ENC, 0.0), UNIT, 0.0, 0.0),
    ),
    "overcomplete/batch topk keeps what is at the threshold": (
        overcomplete,
        *("overcomplete", {"activation": "batch_topk", "threshold": 0.75}, plain),
        *(lambda x: torch.where(x @ W_ENC + B_ENC >= 0.75, x @ W_ENC + B_ENC, 0.0), UNIT, 0.0, 0.0),
    ),
}


def _first() -> dict[str, Tensor]:
    """Of twice as many features as numbers of a token."""
    twelve = [torch.cat([t, t[..., :2]], dim=-1) for t in (W_ENC, B_ENC)]
    return {"W_enc": twelve[0], "b_enc": twelve[1], "W_dec": torch.cat([W_DEC, W_DEC[:2]]), "b_dec": B_DEC}


@pytest.mark.parametrize("name", LOADS)
def test_what_is_loaded_computes_what_theirs_does(name, tmp_path):
    write, layout, settings, frame, acts, directions, minus, plus = LOADS[name]
    sae = load_sae(write(tmp_path), layout, **settings)
    inside, outside = frame(X)
    wanted = acts(inside - minus)
    assert 0 < (wanted != 0).double().mean() < 1
    torch.testing.assert_close(sae.encode(X), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sae.decode(wanted, X), outside(wanted @ directions + plus), rtol=1e-4, atol=1e-5)
    kept = Sae.from_dict(sae.to_dict())
    assert torch.equal(kept.encode(X), sae.encode(X))
    known = {"saelens": (1, "resid_post"), "prisma": (1, "mlp_out")}
    assert (sae.layer, sae.site) == known.get(layout, (None, None))


def test_a_threshold_of_a_batch_is_kept_where_it_is_reached(tmp_path):
    sae = load_sae(overcomplete(tmp_path), "overcomplete", activation="batch_topk", threshold=0.75)
    at = sae.replace(W_enc=torch.zeros(D, F), b_enc=torch.full((F,), 0.75))
    assert torch.equal(at.encode(X), torch.full((5, 3, F), 0.75))


def test_where_it_was_trained_goes_with_it(tmp_path):
    kept = {"metadata": {"hook_name": "blocks.3.attn.hook_z"}, "reshape_activations": "hook_z"}
    sae = load_sae(saelens(tmp_path / "a", PLAIN, architecture="standard", **kept), "saelens")
    assert (sae.layer, sae.site, sae.tokens) == (3, "z", None)
    only = load_sae(prisma(tmp_path / "b", PLAIN, d_sae=F, use_patches_only=True), "prisma")
    assert (only.layer, only.site, only.tokens) == (1, "mlp_out", "patches")


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


def pickled(folder: Path) -> Path:
    prisma(folder, PLAIN, d_sae=F)
    torch.save({"W_enc": Code()}, folder / "weights.pt")
    return folder


def meta(**about: Any) -> dict[str, Any]:
    return {"architecture": "standard", "metadata": {"hook_name": "blocks.1.hook_resid_post"} | about}


REFUSED: dict[str, tuple[Callable[[Path], Path], str, dict[str, Any], str]] = {
    "another layout": (overcomplete, "saelense", {}, "layouts are .*did you mean 'saelens'"),
    "a setting of another": (overcomplete, "overcomplete", {"topk": 3}, "takes activation.*got 'topk'"),
    "no file": (lambda f: f / "none", "saev", {}, "there is no"),
    "saelens/field": (
        lambda f: saelens(f, PLAIN, architecture="standard", d_head=3),
        *("saelens", {}, "'d_head' means is not known"),
    ),
    "saelens/no field": (lambda f: saelens(f, PLAIN), "saelens", {}, "no field 'architecture'"),
    "saelens/no k": (lambda f: saelens(f, PLAIN, architecture="topk"), "saelens", {}, "no field 'k'"),
    "saelens/architecture": (
        lambda f: saelens(f, PLAIN, architecture="transcoder"),
        *("saelens", {}, "architecture is .*got 'transcoder'"),
    ),
    "saelens/norm left open": (
        lambda f: saelens(f, PLAIN, architecture="standard", normalize_activations="expected_average_only_in"),
        *("saelens", {}, "normalize_activations is .*got 'expected_average_only_in'"),
    ),
    "saelens/tensor": (
        lambda f: saelens(f, PLAIN | {"scaling": B_DEC}, architecture="standard"),
        *("saelens", {}, "tensor 'scaling' has no place"),
    ),
    "saelens/no tensor": (
        lambda f: saelens(f, {k: v for k, v in PLAIN.items() if k != "b_enc"}, architecture="standard"),
        *("saelens", {}, "has no tensor 'b_enc'"),
    ),
    "saelens/size": (
        lambda f: saelens(f, PLAIN, architecture="standard", d_sae=F + 1),
        *("saelens", {}, r"d_sae=11, and W_dec is \[10, 6\]"),
    ),
    "saelens/shape": (
        lambda f: saelens(f, PLAIN | {"b_enc": B_DEC}, architecture="standard"),
        *("saelens", {}, r"b_enc is \[10\].*got \[6\]"),
    ),
    "saelens/not finite": (
        lambda f: saelens(f, PLAIN | {"b_enc": B_ENC / 0}, architecture="standard"),
        *("saelens", {}, "b_enc holds finite numbers"),
    ),
    "saelens/a word for true": (
        lambda f: saelens(f, PLAIN, architecture="standard", apply_b_dec_to_input="false"),
        *("saelens", {}, "apply_b_dec_to_input is true or false; got 'false'"),
    ),
    "saelens/half a feature": (
        lambda f: saelens(f, PLAIN, architecture="topk", k=2.5),
        *("saelens", {}, "k is a whole number; got 2.5"),
    ),
    "saelens/k as a word": (
        lambda f: saelens(f, PLAIN, architecture="topk", k="3"),
        *("saelens", {}, "k is a whole number; got '3'"),
    ),
    "saelens/whole numbers": (
        lambda f: saelens(f, PLAIN | {"b_enc": B_ENC.int()}, architecture="standard"),
        *("saelens", {}, "tensor 'b_enc' is of torch.int32"),
    ),
    "saelens/no fields": (
        lambda f: saelens(f, PLAIN, architecture="standard", metadata=[1]),
        *("saelens", {}, r"metadata: fields are to stand there; got \[1\]"),
    ),
    "saelens/another tool's folder": (
        lambda f: prisma(f, PLAIN, d_sae=F),
        *("saelens", {}, "holds no cfg.json"),
    ),
    "saelens/a file": (overcomplete, "saelens", {}, "layout 'saelens' is a folder; .* is one file"),
    "saev/a folder": (lambda f: saelens(f, PLAIN), "saev", {}, "layout 'saev' is one file; .* is a folder"),
    "saev/no fields": (lambda f: saev(f, PLAIN, activation=3), "saev", {}, "activation: fields are to stand there"),
    "prisma/no fields": (
        lambda f: prisma(f, PLAIN, d_sae=F, activation_fn_kwargs=[1]),
        *("prisma", {}, "activation_fn_kwargs: fields are to stand there"),
    ),
    "prisma/a word for true": (
        lambda f: prisma(f, PLAIN, d_sae=F, cls_token_only="no"),
        *("prisma", {}, "cls_token_only is true or false; got 'no'"),
    ),
    "saelens/site": (
        lambda f: saelens(f, PLAIN, **meta(hook_name="blocks.1.hook_resid_past")),
        *("saelens", {}, "no site is called 'blocks.1.hook_resid_past'"),
    ),
    "saelens/transcoder by its hooks": (
        lambda f: saelens(f, PLAIN, **meta(hook_name_out="blocks.1.hook_mlp_out")),
        *("saelens", {}, "a transcoder"),
    ),
    "saelens/one head": (lambda f: saelens(f, PLAIN, **meta(hook_head_index=1)), "saelens", {}, "hook_head_index=1"),
    "saelens/before 6": (
        lambda f: _without(saelens(f, PLAIN, architecture="standard") / "cfg.json", "metadata"),
        *("saelens", {}, "older than SAELens 6"),
    ),
    "prisma/field": (lambda f: prisma(f, PLAIN, d_sae=F, gate=1), "prisma", {}, "'gate' means is not known"),
    "prisma/transcoder": (lambda f: prisma(f, PLAIN, d_sae=F, is_transcoder=True), "prisma", {}, "a transcoder"),
    "prisma/activation": (
        lambda f: prisma(f, PLAIN, d_sae=F, activation_fn_str="leaky_relu"),
        *("prisma", {}, "activation_fn_str is .*got 'leaky_relu'"),
    ),
    "prisma/activation's settings": (
        lambda f: prisma(f, PLAIN, d_sae=F, activation_fn_kwargs={"slope": 1}),
        *("prisma", {}, "activation_fn_kwargs: what 'slope' means"),
    ),
    "prisma/site": (
        lambda f: prisma(f, PLAIN, d_sae=F, layer_subtype="ln2.hook_normalized"),
        *("prisma", {}, r"no site is called 'blocks.1.ln2.hook_normalized'"),
    ),
    "prisma/size": (lambda f: prisma(f, PLAIN, expansion_factor=2), "prisma", {}, "d_in × expansion_factor=12"),
    "prisma/code": (pickled, "prisma", {}, "loading it would run code"),
    "prisma/no weights": (
        lambda f: prisma(f, PLAIN, "other.pt", d_sae=F),
        *("prisma", {}, "holds no weights.safetensors or"),
    ),
    "saev/schema": (
        lambda f: saev(f, PLAIN, header={"schema": 1, "cfg": {}}),
        *("saev", {}, "schema 1 is not known"),
    ),
    "saev/activation": (lambda f: saev(f, PLAIN, "Gelu"), "saev", {}, "cls is .*got 'Gelu'"),
    "saev/field": (lambda f: saev(f, PLAIN, n_prefixes=3), "saev", {}, "'n_prefixes' means is not known"),
    "saev/size": (lambda f: saev(f, PLAIN, d_model=D + 1), "saev", {}, "d_model=7"),
    "overcomplete/encoder": (
        lambda f: overcomplete(f, **{"encoder.final_block.1.weight": B_ENC}),
        *("overcomplete", {"activation": "relu"}, "tensor 'encoder.final_block.1.weight' has no place"),
    ),
    "overcomplete/activation": (overcomplete, "overcomplete", {"activation": "mp"}, "activation is one of"),
    "overcomplete/no k": (overcomplete, "overcomplete", {"activation": "topk"}, "'topk' takes k; got none"),
    "overcomplete/k of none": (overcomplete, "overcomplete", {"activation": "relu", "k": 3}, "takes none of k"),
    "overcomplete/k": (overcomplete, "overcomplete", {"activation": "topk", "k": 99}, "k is 1 to 10"),
    "overcomplete/threshold": (overcomplete, "overcomplete", {"activation": "batch_topk"}, "running_threshold"),
}


def _without(path: Path, field: str) -> Path:
    fields = json.loads(path.read_text())
    del fields[field]
    path.write_text(json.dumps(fields))
    return path.parent


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_understood_is_refused_by_name(name, tmp_path, capsys):
    write, layout, settings, said = REFUSED[name]
    path = write(tmp_path)
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=said):
        load_sae(path, layout, **settings)
    assert "must not run" not in capsys.readouterr().out
