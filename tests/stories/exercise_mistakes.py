"""For every exercise of the notebooks, an answer people give before they get it right; its check must not pass."""

MISTAKES = {
    # what an MLP adds directly, which is not what it is worth
    "check_1_1": """
def effects(model, pixels, labels):
    _, cache = model.run_with_cache(pixels)
    parts, names = cache.decompose_resid(return_labels=True)
    share = cache.logit_attrs(parts, tokens=labels, has_batch_dim=True).sum(-1).mean(1)
    return torch.stack([part for part, name in zip(share, names) if "mlp" in name])
""",
    # position 0
    "check_1_2": """
def cls_behind(model, pixels, intervention):
    with apply(model, intervention):
        _, cache = model.run_with_cache(pixels)
    return cache["resid_post", -1][:, 0]
""",
    # behind the softmax
    "check_1_3": """
def hooks(model):
    def cut(pattern, hook):
        edges = model.tokens.mask("cls")[:, None] & model.tokens.mask("patches")
        return pattern.masked_fill(edges, 0)

    return [(f"blocks.{layer}.attn.hook_pattern", cut) for layer in (6, 7)]
""",
    # one over the number of classes
    "check_2_1": """
def floor(predicted, labels):
    return 1 / len(labels.unique())
""",
    # how often the class stays the image's own
    "check_2_2": """
from interventions import shuffle_cls
def donors_label(model, pixels, labels, layer):
    with apply(model, shuffle_cls(layer=layer, seed=0)):
        return (model(pixels).argmax(-1) == labels).double().mean()
""",
    # any direction that is not a class's own
    "check_2_3": """
def direction(model):
    d = torch.ones(model.cfg.d_model)
    return d / d.norm()
""",
    # cut behind the softmax, where what CLS gives itself still depends on the patches
    "check_3_1": """
def without_rewriting(model, layer):
    behind = range(layer + 1, model.cfg.n_layers)
    return shuffle_cls(layer=layer, seed=0) + zero_attention("cls", "patches", layers=behind)
""",
    # two intervals, as if the images were different ones
    "check_3_2": """
from analyses.statistics.intervals import wilson

def difference(a, b):
    (x, xl, xh), (y, yl, yh) = (wilson(int(t.sum()), len(t)) for t in (a, b))
    return x - y, xl - yh, xh - yl
""",
    # a token that is read by the others
    "check_3_3": """
def own_readout(model, layer, vector):
    return insert_token(layer=layer, vector=vector) + zero_attention("inserted", "cls", layers=layer, renormalise=True)
""",
    # as if the tokens were independent
    "check_4_1": """
def by_luck(predicted, labels):
    return 1 - (1 - 1 / 10) ** predicted.shape[1]
""",
    # without the control
    "check_4_2": """
def excess(model, pixels, labels, layer):
    with torch.no_grad(), apply(model, zero_attention("cls", "patches", layers=layer)):
        return (model(pixels).argmax(-1) == labels).double().mean()
""",
    # the gradient of a mean over images
    "check_4_3": """
def first_order(model, pixels, labels, layer):
    name = f"blocks.{layer}.attn.hook_pattern"
    metric = lambda logits: F.cross_entropy(logits, labels)
    _, cache = model.run_with_cache(pixels, names_filter=name, incl_bwd=True, metric=metric)
    return -(cache[name] * cache[f"{name}_grad"])[:, :, model.tokens.cls, model.tokens.patches].sum((1, 2))
""",
    # both directions the same
    "check_5_1": "shares = {'or': (1, 1), 'and': (0, 0)}",
    # the mean of shares
    "check_5_2": """
def recovery(patched, clean, corrupt):
    return ((patched - corrupt) / (clean - corrupt)).mean()
""",
    # the gradient of the other run
    "check_5_3": """
def attribution(model, clean, corrupt, layer):
    name = f"blocks.{layer}.hook_resid_post"
    wanted = model(clean).argmax(-1, keepdim=True)
    metric = lambda logits: logits.gather(1, wanted).mean()
    with torch.no_grad():
        _, here = model.run_with_cache(corrupt, names_filter=name)
    _, there = model.run_with_cache(clean, names_filter=name, incl_bwd=True, metric=metric)
    return ((there[name] - here[name]) * there[f"{name}_grad"]).sum((0, 2))
""",
}
