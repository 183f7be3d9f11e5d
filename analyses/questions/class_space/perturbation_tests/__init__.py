"""Does taking away what a map points at change the answer?"""
