"""Sparse dictionaries: the value that `splice` puts into the stream, and the layouts other tools save it in."""

from interventions.dictionaries.layouts import load_sae
from interventions.dictionaries.sae import Sae

__all__ = ["Sae", "load_sae"]
