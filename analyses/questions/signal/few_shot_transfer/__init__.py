"""Are few-shot classes of another domain told apart better without the learned CLS embedding?"""
