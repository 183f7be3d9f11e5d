"""Which tokens speak for a class, by the gradient of its projection?"""
