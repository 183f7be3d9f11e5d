"""How fast does the network write the label back into a shuffled CLS?"""
