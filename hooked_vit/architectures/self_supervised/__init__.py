"""Families trained without labels and without text."""
