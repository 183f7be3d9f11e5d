"""Is the CLS token used? Where it is decodable and where causal, how fast it is restored, what else reads for it."""
