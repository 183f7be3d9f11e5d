"""A map of attention is the pattern, over the picture it belongs to."""

from __future__ import annotations

import pytest
import torch

from analyses import attention_map, load_data, show
from hooked_vit import zoo


@pytest.fixture(scope="module")
def image():
    return next(load_data("scenes:test", n=1).batches(1)).images[0]


@pytest.mark.parametrize("name", ["vit", "deit", "beit"])
def test_it_is_the_pattern(name, image):
    model = zoo.load(name)
    pixels = model.preprocess(image)
    _, cache = model.run_with_cache(pixels)
    n = model.layout_for(pixels).n_prefix
    pattern = cache["pattern", 3][0]
    assert torch.allclose(attention_map(model, image, 3, head=1), pattern[1, 0, n:].reshape(6, 6), atol=1e-7)
    assert torch.allclose(
        attention_map(model, pixels, 3, head=-1, query=[n + 2]), pattern[-1, n + 2, n:].reshape(6, 6), atol=1e-7
    )
    assert torch.allclose(
        attention_map(model, image, 3 - model.cfg.n_layers), pattern[:, 0, n:].mean(0).reshape(6, 6), atol=1e-7
    )
    assert torch.allclose(attention_map(model, image, 3, "largest"), pattern[:, 0, n:].amax(0).reshape(6, 6), atol=1e-7)


def test_it_is_drawn_over_the_picture(image):
    model = zoo.load("vit")
    values = attention_map(model, image, 3)
    fig = show(model, image, values, name="<b>share", title="<i>CLS")
    assert torch.equal(torch.as_tensor(fig.data[0].z), values)
    assert fig.layout.title.text == "&lt;i&gt;CLS"
    assert fig.data[0].colorbar.title.text == "&lt;b&gt;share"
    assert fig.layout.images[0].sizex == 48
    signed = show(model, image, values - values.mean()).data[0]
    assert signed.zmin == -signed.zmax  # zero is the middle of the scale, whatever the values


def test_what_it_cannot_show_is_refused(image):
    model = zoo.load("vit")
    for kw, says in (
        ({"layer": 8}, "layers are 0 to 7"),
        ({"layer": 0, "head": 4}, "heads are 0 to 3"),
        ({"layer": 0, "head": "best"}, "'mean' or 'largest'"),
        ({"layer": 0, "query": "patches"}, "one token looks; 'patches' are 36"),
        ({"layer": 0, "query": "dist"}, "dist"),
    ):
        with pytest.raises(ValueError, match=says):
            attention_map(model, image, **kw)
    with pytest.raises(ValueError, match="one image is looked at; got 2"):
        attention_map(model, [image, image], 0)
    with pytest.raises(ValueError, match="one value per patch"):
        show(model, image, torch.zeros(3, 3))
