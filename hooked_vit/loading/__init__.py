"""From a checkpoint to the graph: weights, models of published studies, and the check against the original."""
