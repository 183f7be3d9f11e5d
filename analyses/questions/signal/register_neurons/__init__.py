"""Which neurons make tokens of high norm, and can a token added at test time take them?"""
