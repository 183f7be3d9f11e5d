"""How far are decodability and causal effect apart?"""
