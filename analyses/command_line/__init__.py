"""`hooked-vit` in the terminal."""
