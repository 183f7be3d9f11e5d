"""Tokens of unusual norm, and registers."""
