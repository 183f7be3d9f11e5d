"""Runs of one image patched with activations of another: sites, runs, metrics and their tally."""
