"""What a sparse dictionary finds in the stream, and what its features do."""
