"""Which edges between the parts of a model carry a difference? Scores, faithfulness, and the circuit as a graph."""
