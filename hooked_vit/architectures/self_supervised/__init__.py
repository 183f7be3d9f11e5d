"""Families trained without labels and without text, most of them on hidden patches."""
