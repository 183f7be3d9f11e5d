"""The catalogue: one file a kind of edit. A decorated function in any module here is found by itself."""
