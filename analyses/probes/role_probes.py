"""Ridge probes on the tokens of one role at every layer, and a head where the model has none, from one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from analyses.activations.sites import Site, SiteReader
from analyses.probes.classifier_heads import Answers, head_of_probe
from analyses.probes.opening import Opening
from analyses.probes.passes import read_images
from analyses.probes.ridge import GramRidge, RidgeProbe
from hooked_vit import HookedViT


def read_role(model: HookedViT, tokens: str = "cls") -> Callable[[Float[Tensor, "b t d"]], Float[Tensor, "b d"]]:
    """A function that takes a stream to the mean over its tokens of a role; CLS is the mean of one.

    >>> read_role(model, "patches")(model(pixels, stop_at_layer=3)).shape  # doctest: +SKIP
    torch.Size([8, 768])

    Called, it raises ValueError for a stream of other tokens than those of the run in progress or, where there is none,
    of images of the usual size.
    """

    def read(resid: Float[Tensor, "b t d"]) -> Float[Tensor, "b d"]:
        layout = model.tokens
        if resid.shape[1] != layout.n_tokens:
            raise ValueError(f"this stream holds {resid.shape[1]} tokens, and {layout} is another")
        return resid[:, layout.where(tokens)].mean(1)

    return read


def check_role(name: str, model: HookedViT, tokens: str, what: str) -> None:
    """Refuse, before any run, a role the model has not; `what` says for what it would be needed.

    Raises ValueError naming the roles there are.
    """
    if tokens not in model.tokens.roles:
        raise ValueError(
            f"{name} has no {tokens} token (it has {', '.join(model.tokens.roles)}): there is nothing to {what}"
        )


def fit_role_probes(
    name: str,
    model: HookedViT,
    opening: Opening,
    batch_size: int,
    tokens: str = "cls",
    layers: Sequence[int] | None = None,
) -> tuple[dict[int, RidgeProbe], Answers]:
    """A probe of every layer's output, and the head that answers: the model's own, or a ridge head where it has none.

    >>> opening = open_study({"vit": model}, data, fit_data)  # doctest: +SKIP
    >>> probes, answers = fit_role_probes("vit", model, opening, batch_size=128)  # doctest: +SKIP

    A probe reads the mean over the tokens of the role behind its layer, of `layers` where some are named. The head is
    fitted in the same pass, on what `ready_for_head` says. Raises what `GramRidge` raises.
    """
    own, pooling = opening.heads[name], opening.pooling(name, model)
    reader = SiteReader(pooling, (tokens,), layers=layers)
    ridge = GramRidge(opening.n_classes, name=name)
    what = f"{name}: fitting probes"
    for reading in read_images(reader, opening.fitted, batch_size, what, answers=own is None, into=[ridge]):
        sites = {str(layer): reading.features[str(Site(tokens, layer))] for layer in reader.layers}
        if own is None:
            assert reading.answer is not None
            sites["head"] = reading.answer
        ridge.update(sites, reading.batch.labels)
    fitted = ridge.fit()
    answers = own or head_of_probe(pooling, fitted["head"], opening.fitted)
    return {layer: fitted[str(layer)] for layer in reader.layers}, answers
