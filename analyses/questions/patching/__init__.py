"""Which activations carry a difference? Activation, attribution and path patching, logit attribution, counting."""
