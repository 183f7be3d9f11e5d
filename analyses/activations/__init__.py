"""Activations on their way to a measurement: the stream layer by layer, tokens by role and by group."""
