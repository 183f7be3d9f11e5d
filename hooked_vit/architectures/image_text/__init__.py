"""Vision towers trained beside a text tower, other than CLIP's own."""
