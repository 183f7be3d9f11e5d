"""Vision towers trained beside a text tower."""
