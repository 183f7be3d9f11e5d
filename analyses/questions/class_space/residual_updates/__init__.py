"""Which sub-layer writes the class?"""
