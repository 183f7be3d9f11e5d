"""A page on which a reader explores one image in one model."""
