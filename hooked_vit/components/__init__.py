"""The parts of the graph, each activation named where it is computed."""
