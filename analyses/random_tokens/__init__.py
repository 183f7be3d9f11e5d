"""A frozen block run once more with a random token, a readout trained on its answer, and its inputs on disk."""
