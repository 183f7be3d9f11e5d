"""A run has the hooks and tokens of its model: one thread at a time, and a sentence for the others."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable

import pytest
import torch

from hooked_vit import HookedViT
from tests.tiny import make, pixels, tiny


def in_thread(work: Callable) -> BaseException | None:
    """What another thread ends with."""
    ended: list[BaseException | None] = [None]

    def run() -> None:
        try:
            work()
        except BaseException as error:
            ended[0] = error

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return ended[0]


@pytest.fixture(scope="module")
def model() -> HookedViT:
    return make("beit-mean-both", torch.float32)


def test_what_another_thread_may_do_meanwhile(model):
    x = pixels(model)
    layout = model.layout_for(48, 40)
    uses = {
        "run": lambda: model(x),
        "cache": lambda: model.run_with_cache(x),
        "hook": lambda: model.run_with_hooks(x, fwd_hooks=[("hook_embed", lambda act, hook: act)]),
        "attach": lambda: model.add_hook("hook_embed", lambda act, hook: act),
        "kernel": lambda: model.set_attention("eager"),
        "parts": lambda: model.running(layout).__enter__(),
    }
    seen = []

    def ask(act, hook):
        seen.append({name: in_thread(use) for name, use in uses.items()})

    with model.hooks([("blocks.1.hook_resid_pre", ask)]):
        clean = model(x)
        seen.append({name: in_thread(use) for name, use in uses.items()})  # attached, though nothing runs
    with model.running(layout):
        seen.append({name: in_thread(use) for name, use in uses.items()})
    for answers in seen:
        for name, answer in answers.items():
            assert isinstance(answer, RuntimeError), name
            assert "give each thread a model.shared_copy()" in str(answer)
    assert len(seen) == 3
    assert model.tokens is model.run.native
    assert [in_thread(use) for use in list(uses.values())[:3]] == [None] * 3  # and it is free again
    assert torch.equal(model(x), clean)


def test_one_thread_may_nest():
    model = tiny("vit")[1]
    x = pixels(model)

    def again(act, hook):
        hook.ctx["inner"] = model.run_with_cache(x, stop_at_layer=0)[0]

    with model.hooks([("hook_logits", again)]), model.hooks():
        model(x)
    assert in_thread(lambda: model(x)) is None
    model.clear_contexts()


def test_many_threads_are_right_or_refused(model):
    """Each with another hook and another image size; and with copies of their own all are right."""
    sizes = [(32, 32), (48, 40), (16, 64), (64, 64)]

    def edit(by: float) -> list:
        return [("blocks.0.hook_resid_post", lambda act, hook: act * by)]

    images = [pixels(model, size, n=1) for size in sizes]
    want = [model.run_with_hooks(x, fwd_hooks=edit(i)) for i, x in enumerate(images)]

    def work(i: int, own: HookedViT, out: list) -> None:
        for _ in range(5):
            try:
                out.append(torch.equal(own.run_with_hooks(images[i], fwd_hooks=edit(i)), want[i]))
            except RuntimeError as error:
                out.append(None if "another thread" in str(error) else error)

    for copies in (False, True):
        outs: list[list] = [[] for _ in sizes]
        threads = [
            threading.Thread(target=work, args=(i, model.shared_copy() if copies else model, out))
            for i, out in enumerate(outs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answers = [answer for out in outs for answer in out]
        assert len(answers) == 20
        assert set(answers) <= ({True} if copies else {True, None})
    assert model.tokens is model.run.native


def test_a_copy_is_nobodys(model):
    x, clean = pixels(model), model(pixels(model))
    with model.running(model.layout_for(48, 40)):
        copies = [model.shared_copy(), copy.copy(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in copies:
        assert other.tokens is other.run.native
        assert in_thread(lambda other=other: other(x)) is None
        assert torch.equal(other(x), clean)
