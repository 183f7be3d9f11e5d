"""timm's models: one graph under many names."""
