"""Class embedding space in straight-line NumPy, from the formulas of methods §7 to §23 alone.

A plain pre-norm ViT with a CLS readout and loops instead of tensor tricks: slow, obvious, and independent of the
product, which it is compared with. Blocks are numbered from 0; `h[0]` is the embedding and `h[b + 1]` leaves block b.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from math import erf, sqrt

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
EditPattern = Callable[[int, Array], Array]


@dataclass
class Run:
    """What one forward pass leaves: streams, what the branches add, patterns, values, coefficients, logits."""

    h: list[Array]
    u: list[Array]
    attn: list[Array]
    mlp: list[Array]
    pattern: list[Array]
    values: list[Array]
    mixed: list[Array]
    keys: list[Array]
    logits: Array


class ReferenceViT:
    """A ViT for image classification, from the state dict of transformers' ViTForImageClassification."""

    def __init__(self, hf) -> None:
        self.p = {name: tensor.detach().double().numpy() for name, tensor in hf.state_dict().items()}
        self.n_layers, self.n_heads = hf.config.num_hidden_layers, hf.config.num_attention_heads
        self.eps, self.patch = hf.config.layer_norm_eps, hf.config.patch_size
        self.E, self.c = self.p["classifier.weight"], self.p["classifier.bias"]
        self.n_classes = len(self.c)

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]

    def norm(self, name: str, x: Array) -> Array:
        mean = x.mean(-1, keepdims=True)
        var = ((x - mean) ** 2).mean(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + self.eps) * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def block(self, b: int) -> str:
        return f"vit.layers.{b}"

    def w_o(self, b: int) -> Array:
        """[d, d], a row per coefficient: the value vectors of attention."""
        return self.p[f"{self.block(b)}.attention.o_proj.weight"].T

    def w_out(self, b: int) -> Array:
        """[d_mlp, d], a row per neuron: the value vectors of the MLP."""
        return self.p[f"{self.block(b)}.mlp.fc2.weight"].T

    def embed(self, pixels: Array) -> Array:
        n, _, height, width = pixels.shape
        kernel, bias = (self.p[f"vit.embeddings.patch_embeddings.projection.{part}"] for part in ("weight", "bias"))
        s = self.patch
        tokens = [
            [
                np.tensordot(pixels[i, :, r : r + s, k : k + s], kernel, axes=([0, 1, 2], [1, 2, 3])) + bias
                for r in range(0, height, s)
                for k in range(0, width, s)
            ]
            for i in range(n)
        ]
        cls = np.repeat(self.p["vit.embeddings.cls_token"], n, axis=0)
        return np.concatenate([cls, np.array(tokens)], axis=1) + self.p["vit.embeddings.position_embeddings"]

    def run(self, pixels: Array, edit: EditPattern | None = None, keep: list[int] | None = None) -> Run:
        """A forward pass; `edit` changes the patterns [n, h, t, t] of a block, `keep` deletes the other tokens."""
        x = self.embed(pixels)
        if keep is not None:
            x = x[:, keep]
        out = Run([x], [], [], [], [], [], [], [], x)
        for b in range(self.n_layers):
            name = self.block(b)
            normed = self.norm(f"{name}.layernorm_before", x)
            q, k, v = (self.heads(self.linear(f"{name}.attention.{part}_proj", normed)) for part in "qkv")
            scores = q @ k.swapaxes(-1, -2) / sqrt(q.shape[-1])
            raised = np.exp(scores - scores.max(-1, keepdims=True))
            pattern = raised / raised.sum(-1, keepdims=True)
            if edit is not None:
                pattern = edit(b, pattern)
            mixed = (pattern @ v).swapaxes(1, 2).reshape(x.shape)
            attn = self.linear(f"{name}.attention.o_proj", mixed)
            u = x + attn
            pre = self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.layernorm_after", u))
            keys = pre * (1 + np.vectorize(erf)(pre / sqrt(2))) / 2
            mlp = self.linear(f"{name}.mlp.fc2", keys)
            x = u + mlp
            for kept, value in zip(
                (out.h, out.u, out.attn, out.mlp, out.pattern, out.values, out.mixed, out.keys),
                (x, u, attn, mlp, pattern, v, mixed, keys),
                strict=True,
            ):
                kept.append(value)
        out.logits = self.project(x[:, 0])
        return out

    def heads(self, x: Array) -> Array:
        n, t, d = x.shape
        return x.reshape(n, t, self.n_heads, d // self.n_heads).swapaxes(1, 2)

    # -- section 7

    def project(self, x: Array) -> Array:
        """p(x) = E LN_f(x) + c."""
        return self.norm("vit.layernorm", x) @ self.E.T + self.c

    def positions(self, x: Array, y: NDArray[np.int64]) -> Array:
        """Tie-aware position of the true class for x [n, t, d]: [n, t]."""
        scores = self.project(x)
        pos = np.zeros(x.shape[:2])
        for j in range(x.shape[0]):
            for t in range(x.shape[1]):
                row, true = scores[j, t], scores[j, t, y[j]]
                pos[j, t] = sum(row > true) + (sum(row == true) - 1) / 2
        return pos

    def true_logit(self, x: Array, y: NDArray[np.int64]) -> Array:
        scores = self.project(x)
        return np.array([[scores[j, t, y[j]] for t in range(x.shape[1])] for j in range(x.shape[0])])

    def identifiability(self, x: Array, y: NDArray[np.int64]) -> Array:
        return 1 - self.positions(x, y) / self.n_classes

    # -- sections 8 to 11

    def rate(self, run: Run, y: NDArray[np.int64]) -> float:
        """Share of image tokens at the last block with the true class first, mean over images."""
        return float(np.mean([np.mean(image < 0.5) for image in self.positions(run.h[-1][:, 1:], y)]))

    def at_least_one(self, run: Run, y: NDArray[np.int64]) -> float:
        return float(np.mean([(image < 0.5).any() for image in self.positions(run.h[-1][:, 1:], y)]))

    def evolution(self, run: Run, y: NDArray[np.int64]) -> list[tuple[float, float]]:
        """Per block, mean identifiability of CLS and of image tokens."""
        r = [self.identifiability(h, y) for h in run.h[1:]]
        return [(float(x[:, 0].mean()), float(x[:, 1:].mean())) for x in r]

    def change_rate(self, run: Run, y: NDArray[np.int64]) -> list[float]:
        """Per block, share of image tokens whose true-class logit is higher behind it than in front of it."""
        logits = [self.true_logit(h[:, 1:], y) for h in run.h]
        return [float((after > before).mean()) for before, after in itertools.pairwise(logits)]

    # -- section 15

    def similarity_change(self, run: Run, y: NDArray[np.int64], reference: str) -> dict[tuple[str, str], list[float]]:
        """Share of tokens whose update alone has a higher true-class logit than what it is compared with."""
        rates: dict[tuple[str, str], list[float]] = {}
        for part, updates in (("attn", run.attn), ("mlp", run.mlp)):
            for role, tokens in (("cls", slice(0, 1)), ("patches", slice(1, None))):
                rates[part, role] = []
                for b in range(self.n_layers):
                    against = run.u[b] if part == "mlp" and reference == "layer_input" else run.h[b]
                    above = self.true_logit(updates[b], y) > self.true_logit(against, y)
                    rates[part, role].append(float(above[:, tokens].mean()))
        return rates

    # -- section 16

    def composition(self, run: Run) -> list[dict[str, float]]:
        """Per block, over all tokens: how often the top class is that before the block, of either update, of none."""
        top = lambda x: self.project(x).argmax(-1)  # noqa: E731
        rows = []
        for b in range(self.n_layers):
            after = top(run.h[b + 1])
            prev, attn, mlp = (after == top(x) for x in (run.h[b], run.attn[b], run.mlp[b]))
            rows.append({
                "prev": float(prev.mean()), "attn": float(attn.mean()), "mlp": float(mlp.mean()),
                "comp": float((~prev & ~attn & ~mlp).mean()), "comp_repro": float((~prev & ~attn & ~attn).mean()),
                "prev_only": float((prev & ~attn & ~mlp).mean()), "attn_only": float((attn & ~prev & ~mlp).mean()),
                "mlp_only": float((mlp & ~prev & ~attn).mean()),
                "several": float((prev.astype(int) + attn + mlp >= 2).mean()),
            })  # fmt: skip
        return rows

    # -- sections 17 to 20

    def value_vectors(self, b: int, part: str) -> Array:
        return self.w_o(b) if part == "attn" else self.w_out(b)

    def class_value_agreement(self, b: int, part: str) -> Array:
        """Per class, the largest cosine between its prototype and a value vector of the layer: [C]."""
        values = self.value_vectors(b, part)
        scores = np.zeros(self.n_classes)
        for k in range(self.n_classes):
            cosines = [v @ self.E[k] / np.linalg.norm(v) / np.linalg.norm(self.E[k]) for v in values]
            scores[k] = max(cosines)
        return scores

    def coefficients(self, run: Run, b: int, part: str) -> Array:
        return run.mixed[b] if part == "attn" else run.keys[b]

    def agrees(self, run: Run, y: NDArray[np.int64], b: int, part: str, definition: str) -> NDArray[np.bool_]:
        """[n, t]: whether one of a token's five most active memories promotes the class in y."""
        promoted = self.E @ self.value_vectors(b, part).T  # [C, M]
        k = self.coefficients(run, b, part)
        out = np.zeros(k.shape[:2], bool)
        for j in range(k.shape[0]):
            for t in range(k.shape[1]):
                active = np.argsort(-k[j, t], kind="stable")[:5]
                if definition == "A":
                    strongest = set(np.argsort(-promoted[y[j]], kind="stable")[:5].tolist())
                    out[j, t] = any(m in strongest for m in active.tolist())
                else:
                    out[j, t] = any(
                        y[j] in np.argsort(-promoted[:, m], kind="stable")[:5].tolist() for m in active.tolist()
                    )
        return out

    def memory_match(self, run: Run, b: int, part: str) -> NDArray[np.bool_]:
        """[n, t]: whether the update's top class is the one some of the five most active memories promotes most."""
        promoted = self.E @ self.value_vectors(b, part).T
        predicted = self.project((run.attn if part == "attn" else run.mlp)[b]).argmax(-1)
        k = self.coefficients(run, b, part)
        out = np.zeros(k.shape[:2], bool)
        for j in range(k.shape[0]):
            for t in range(k.shape[1]):
                active = np.argsort(-k[j, t], kind="stable")[:5]
                out[j, t] = predicted[j, t] in [int(promoted[:, m].argmax()) for m in active]
        return out

    # -- section 21

    def cross_entropy(self, logits: Array, c: int, *, double: bool = False) -> float:
        if double:
            raised = np.exp(logits - logits.max())
            logits = raised / raised.sum()
        top = logits.max()
        return float(top + np.log(np.exp(logits - top).sum()) - logits[c])

    def importance(
        self, run: Run, j: int, c: int, b: int, h: int, *, double: bool = False, step: float = 1e-5
    ) -> Array:
        """−∂CE(p(attention update of CLS), c)/∂A[CLS, i] for every image token i, by central differences."""
        weight, bias = self.w_o(b), self.p[f"{self.block(b)}.attention.o_proj.bias"]

        def loss(row: Array) -> float:
            parts = [
                (row if head == h else run.pattern[b][j, head, 0]) @ run.values[b][j, head]
                for head in range(self.n_heads)
            ]
            return self.cross_entropy(self.project(np.concatenate(parts) @ weight + bias), c, double=double)

        row = run.pattern[b][j, h, 0]
        gradient = np.zeros(len(row))
        for i in range(len(row)):
            bump = np.eye(len(row))[i] * step
            gradient[i] = (loss(row + bump) - loss(row - bump)) / (2 * step)
        return -gradient[1:]

    # -- section 22

    def deletion_curve(
        self, pixels: Array, y: NDArray[np.int64], order: NDArray[np.int64], ks: list[int]
    ) -> list[float]:
        """Accuracy with the first k image tokens of each image's order deleted behind the position embedding."""
        curve = []
        for k in ks:
            right = []
            for j in range(len(pixels)):
                gone = set(order[j, :k].tolist())
                keep = [0, *(1 + i for i in range(order.shape[1]) if i not in gone)]
                right.append(int(self.run(pixels[j : j + 1], keep=keep).logits[0].argmax()) == y[j])
            curve.append(float(np.mean(right)))
        return curve

    def published_auc(self, curve: list[float], n: int) -> float:
        """Σ accuracy / (greatest accuracy · n) over keep-counts 1 to n − 1: `curve` starts with one token removed."""
        return sum(curve) / (max(curve) * n)


def trapezoid(curve: list[float], fractions: list[float]) -> float:
    """Area under a curve over fractions removed from 0 to 1."""
    steps = zip(fractions[:-1], fractions[1:], curve[:-1], curve[1:], strict=True)
    return sum((b - a) * (left + right) / 2 for a, b, left, right in steps)


def rollout(patterns: list[Array]) -> Array:
    """Π (½ A + ½ I), later blocks on the left, heads averaged; [n, t, t]."""
    n, _, t, _ = patterns[0].shape
    out = np.repeat(np.eye(t)[None], n, axis=0)
    for pattern in patterns:
        out = (pattern.mean(1) / 2 + np.eye(t) / 2) @ out
    return out


def ridge(x: Array, y: NDArray[np.int64], n_classes: int, alpha: float) -> tuple[Array, Array]:
    """One-vs-rest ridge on targets ±1 with an intercept that is not penalised: (weight [C, d], bias [C])."""
    targets = np.where(y[:, None] == np.arange(n_classes), 1.0, -1.0)
    mean, level = x.mean(0), targets.mean(0)
    weight = np.linalg.solve((x - mean).T @ (x - mean) + alpha * np.eye(x.shape[1]), (x - mean).T @ (targets - level)).T
    return weight, level - weight @ mean


# -- section 12


def self_only(b: int, pattern: Array) -> Array:
    """Image tokens see only themselves, with weight 1; CLS as before."""
    out = pattern.copy()
    for t in range(1, pattern.shape[2]):
        out[:, :, t] = 0
        out[:, :, t, t] = 1
    return out


def img2img_zero(b: int, pattern: Array) -> Array:
    """Image tokens do not see other image tokens; nothing is renormalised."""
    out = pattern.copy()
    for t in range(1, pattern.shape[2]):
        for s in range(1, pattern.shape[2]):
            if s != t:
                out[:, :, t, s] = 0
    return out


def img2img_renorm(b: int, pattern: Array) -> Array:
    """The same, with what is left scaled up to 1."""
    out = img2img_zero(b, pattern)
    return out / out.sum(-1, keepdims=True)


def no_cls(b: int, pattern: Array) -> Array:
    """Image tokens do not see CLS; nothing is renormalised."""
    out = pattern.copy()
    out[:, :, 1:, 0] = 0
    return out


def cls_no_img(b: int, pattern: Array) -> Array:
    """CLS does not see image tokens; nothing is renormalised."""
    out = pattern.copy()
    out[:, :, 0, 1:] = 0
    return out
