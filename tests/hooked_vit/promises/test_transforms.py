"""The table of torch's transforms in docs/promises.md: what it says works does, what it says is refused is."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hooked_vit import HookedViT, processing
from tests.interventions.cases import unchecked_types
from tests.tiny import distance, make, make_hf, pixels

ROOT = Path(__file__).parents[3]
FAMILIES = ("clip-classifier", "beit-mean-both")  # an activation of its own, and biases that gradients reach
EXACT, ROUNDED = 0.0, 1e-12
# a process of its own, decompositions to load, and what test_compiling is about: once
SLOW = ("spawned workers", "torch.func.jacfwd", "torch.compile", "compiled and wrapped blocks")


def reloaded(model: HookedViT) -> HookedViT:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def spawned(model: HookedViT, x: torch.Tensor) -> torch.Tensor:
    work = "import pickle as p, sys; m, x = p.load(sys.stdin.buffer); p.dump(m(x).detach(), sys.stdout.buffer)"
    sent = pickle.dumps((model, x))
    done = subprocess.run([sys.executable, "-c", work], input=sent, capture_output=True, check=True, cwd=ROOT)
    return pickle.loads(done.stdout)


def ways(x: torch.Tensor) -> torch.Tensor:
    """Eight directions of pixels: forward mode costs a run for each."""
    return torch.randn(8, *x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))


def forward_mode(m: HookedViT, x: torch.Tensor) -> torch.Tensor:
    directions, steps = ways(x), torch.zeros(8, dtype=x.dtype)
    return torch.func.jacfwd(lambda s: m(x + torch.tensordot(s, directions, 1))[0])(steps)


def along(m: HookedViT, x: torch.Tensor) -> torch.Tensor:
    return jacobian(m, x).flatten(1) @ ways(x).flatten(1).T


class Adapted(nn.Module):
    """A linear layer and a low-rank change of it, as adapters put them in its place."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down = base, nn.Linear(base.in_features, 2, bias=False).to(base.weight)
        self.up = nn.Linear(2, base.out_features, bias=False).to(base.weight)
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def adapted(model: HookedViT) -> HookedViT:
    for block in model.blocks:
        block.attn.q, block.attn.o = Adapted(block.attn.q), Adapted(block.attn.o)
        block.mlp.fc_in = Adapted(block.mlp.fc_in)
    return model


def merged(model: HookedViT) -> HookedViT:
    """After `adapted`, in whose place it puts plain layers."""
    for module in list(model.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, Adapted):
                with torch.no_grad():
                    layer.base.weight += layer.up.weight @ layer.down.weight
                setattr(module, name, layer.base)
    return model


def quantised(model: HookedViT) -> HookedViT:
    return torch.ao.quantization.quantize_dynamic(model.float(), {nn.Linear})


def by_gradient(model: HookedViT, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model(x)[:, 1].sum(), x)[0]


def jacobian(model: HookedViT, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.stack([torch.autograd.grad(out, x, retain_graph=True)[0] for out in model(x)[0]])


def compiled(model: HookedViT, x: torch.Tensor) -> torch.Tensor:
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager")(x)


def compiled_blocks(model: HookedViT, x: torch.Tensor) -> torch.Tensor:
    torch._dynamo.reset()
    model.blocks = nn.ModuleList(torch.compile(block, backend="aot_eager") for block in model.blocks)
    return model(x)


def checkpointed(model: HookedViT, x: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(checkpoint(model, x, use_reentrant=False)[:, 1].sum(), x)[0]


@pytest.fixture(scope="module", autouse=True)
def unchecked() -> Iterator[None]:
    """As users run it: what checks shapes in tests is itself in torch's way."""
    with unchecked_types():
        yield


Numbers = Callable[[HookedViT, torch.Tensor], torch.Tensor]
PLAIN: Numbers = lambda model, x: model(x)  # noqa: E731
# what is computed, what it has to be, and how closely
WORKS: dict[str, tuple[Numbers, Numbers, float]] = {
    "pickle": (lambda m, x: pickle.loads(pickle.dumps(m))(x), PLAIN, EXACT),
    "copy.copy": (lambda m, x: copy.copy(m)(x), PLAIN, EXACT),
    "copy.deepcopy": (lambda m, x: copy.deepcopy(m)(x), PLAIN, EXACT),
    "torch.save": (lambda m, x: reloaded(m)(x), PLAIN, EXACT),
    "spawned workers": (spawned, PLAIN, EXACT),
    "torch.func.grad": (lambda m, x: torch.func.grad(lambda p: m(p)[:, 1].sum())(x), by_gradient, ROUNDED),
    "torch.func.jacrev": (lambda m, x: torch.func.jacrev(lambda p: m(p)[0])(x), jacobian, ROUNDED),
    "torch.func.jacfwd": (forward_mode, along, ROUNDED),
    "torch.func.vmap": (lambda m, x: torch.func.vmap(lambda p: m(p[None])[0])(x), PLAIN, ROUNDED),
    "torch.func.functional_call": (
        lambda m, x: torch.func.functional_call(m, dict(m.named_parameters()), (x,)),
        PLAIN,
        EXACT,
    ),
    "torch.compile": (compiled, PLAIN, EXACT),
    "compiled and wrapped blocks": (compiled_blocks, PLAIN, EXACT),
    "checkpointing the whole model": (checkpointed, by_gradient, ROUNDED),
    "adapters in place of linear layers": (
        lambda m, x: adapted(m)(x),
        lambda m, x: merged(m)(x),
        ROUNDED,
    ),
    "dynamic quantisation": (
        lambda m, x: quantised(m).run_with_cache(x.float())[0].double(),
        lambda m, x: m(x.float()).double(),
        0.1,
    ),
}


def through_a_checkpointed_block(model: HookedViT, x: torch.Tensor) -> None:
    stream = model(x, stop_at_layer=0).detach().requires_grad_()
    with model.running(model.layout_for(32, 32)):
        out = checkpoint(model.blocks[0], stream, use_reentrant=False)
    out.sum().backward()


def weights(model: HookedViT, x: torch.Tensor) -> None:
    """Every way to read them, each of which has to refuse."""
    names = ("W_Q", "W_O", "b_O", "W_in", "OV")
    reads = [lambda name=name: getattr(model, name) for name in names]
    reads += [model.fold_layer_norm_]
    reads += [lambda: model.run_with_cache(x, names_filter="blocks.0.attn.hook_result")]
    for read in reads[:-1]:
        with pytest.raises(TypeError, match="taken the place of a linear layer"):
            read()
    reads[-1]()


REFUSED: dict[str, list[tuple[Callable, str]]] = {
    "torch.export": [(lambda m, x: torch.export.export(m, (x,)), "an exported graph has no hooks")],
    "DataParallel": [(lambda m, x: m._replicate_for_data_parallel(), "use DistributedDataParallel")],
    "gradient checkpointing": [
        (lambda m, x: m.gradient_checkpointing_enable(), "gradient checkpointing runs blocks again"),
        (through_a_checkpointed_block, "gradient checkpointing runs blocks again"),
    ],
    "from_hf of a wrapped model": [
        (lambda m, x: HookedViT.from_hf(torch.compile(make_hf("vit"))), r"OptimizedModule.*_orig_mod"),
        (lambda m, x: HookedViT.from_hf(nn.DataParallel(make_hf("vit"))), r"DataParallel.*module"),
    ],
    "weights of layers with adapters": [(lambda m, x: weights(adapted(m), x), "taken the place of a linear layer")],
    "weights of quantised layers": [(lambda m, x: weights(quantised(m), x.float()), "taken the place of a linear")],
}


def table() -> dict[str, str]:
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    rows = [line.strip("|\n ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {what: says for what, says in rows if says in ("works", "refused")}


def test_the_table_lists_what_is_tested():
    assert table() == dict.fromkeys(WORKS, "works") | dict.fromkeys(REFUSED, "refused")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("what", "family"), [(what, family) for what in WORKS for family in (FAMILIES[:1] if what in SLOW else FAMILIES)]
)
def test_it_works(what, family):
    model = make(family)
    x = pixels(model)
    compute, expected, within = WORKS[what]
    assert distance(compute(model, x).detach(), expected(model, x).detach()) <= within
    if what == "adapters in place of linear layers":
        assert distance(adapted(make(family))(x).detach(), make(family)(x).detach()) > 1e-3
    assert model.tokens is model.run.native


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused(what):
    for call, said in REFUSED[what]:
        model = make("vit", torch.float32)
        with pytest.raises((TypeError, NotImplementedError, RuntimeError, ValueError), match=said):
            call(model, pixels(model))


def test_image_processors_are_pickled_too():
    numbers = {"mean": [0.5] * 3, "std": [1.0] * 3}
    made = processing.centre_cropping(size={"height": 8, "width": 8}, crop=(4, 4), resample=2, **numbers)
    again = pickle.loads(pickle.dumps(made))
    assert again.to_dict() == made.to_dict()
