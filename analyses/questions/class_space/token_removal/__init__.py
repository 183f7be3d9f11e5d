"""Do class tokens need context tokens, and the other way round?"""
