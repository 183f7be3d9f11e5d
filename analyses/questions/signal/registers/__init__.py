"""Which tokens have outlier norms, and what is in the registers?"""
