"""How well a dictionary stands for the stream, and what its features do."""
