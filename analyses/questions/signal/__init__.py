"""What of the signal a token holds: frequencies, norms and registers."""
