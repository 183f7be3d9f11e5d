"""Activations of a model over images, kept on disk: written once, read by any number of analyses and processes."""

from analyses.activations.store.reading import Store
from analyses.activations.store.tokens import StoredTokens
from analyses.activations.store.writing import store_activations

__all__ = ["Store", "StoredTokens", "store_activations"]
