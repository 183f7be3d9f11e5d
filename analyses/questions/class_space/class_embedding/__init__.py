"""The whole study of class embedding space, question by question."""
