"""The images and patches in which a feature is largest, a page per feature."""
