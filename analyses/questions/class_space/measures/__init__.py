"""What several questions about class embedding space measure with."""
