"""Parts that are multiplied by hand beside a run in fewer digits: the numbers of the plain model, nearly."""

from __future__ import annotations

import pytest
import torch

from analyses import circuit_discovery, head_ablation, path_patching
from analyses.questions.patching.paths import Receiver
from analyses.running.results import Result
from hooked_vit import HookedViT
from tests.analyses.everything import scenes
from tests.analyses.questions.test_some_layers import model
from tests.tiny import pixels


@pytest.fixture(params=["told", "in the caller's"])
def answers(request: pytest.FixtureRequest):
    """Gives an analysis of the plain model, and of one whose products are of bfloat16."""

    def both(asked) -> tuple[Result, Result]:
        vit = model().shared_copy()
        plain = asked(vit)
        if request.param == "told":
            vit.set_autocast("bfloat16")
            return plain, asked(vit)
        with torch.autocast("cpu", torch.bfloat16):
            return plain, asked(vit)

    return both


def near(plain: Result, other: Result) -> None:
    a, b = (result.frame.value.astype(float).to_numpy() for result in (plain, other))
    assert len(a) == len(b)
    assert abs(a - b).max() <= 0.05 * abs(a).max()


def pairs(vit: HookedViT) -> tuple[torch.Tensor, torch.Tensor]:
    x = pixels(vit, n=8)
    return x[:4], x[4:]


def test_head_ablation(answers) -> None:
    def asked(vit: HookedViT) -> Result:
        result = head_ablation({"m": vit}, scenes(), draws=1, batch_size=20, layers=(1,))
        result.frame = result.frame[result.frame.measure == "drop"]
        return result

    near(*answers(asked))


@pytest.mark.parametrize("site", ["q", "v", "mlp_in", "logits"])
def test_path_patching_comes_to_an_end(answers, site: str) -> None:
    """What random weights make of other pixels drowns in 8 bits, so that the numbers are others."""
    receiver = Receiver(site) if site == "logits" else Receiver(site, layer=2)
    clean, corrupt = pairs(model())
    answer = model()(clean).argmax(-1)
    classes = answer, (answer + 1) % 10
    plain, other = answers(lambda vit: path_patching(vit, clean, corrupt, receiver=receiver, classes=classes))
    rest = ["value", "low", "high"]
    assert plain.frame.drop(columns=rest, errors="ignore").equals(other.frame.drop(columns=rest, errors="ignore"))
    assert other.frame.value.notna().all()


def test_circuit_discovery_comes_to_an_end(answers) -> None:
    """Which edges it keeps may hang on the last digit."""

    def asked(vit: HookedViT) -> Result:
        clean, corrupt = pairs(vit)
        answer = vit(clean).argmax(-1)
        return circuit_discovery(vit, clean, corrupt, classes=(answer, (answer + 1) % 10), exact=4, sizes=(1, 2))

    plain, other = answers(asked)
    assert list(plain.frame.columns) == list(other.frame.columns)
