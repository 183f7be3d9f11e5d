"""Pictures and sentences: one module per analysis, drawing from its result alone."""
