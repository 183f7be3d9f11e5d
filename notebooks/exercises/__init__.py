"""Checks of the exercises in the notebooks: one file a notebook, `check_1_2` for the second exercise of the first.

A check measures on images of its own, in another way than the solution does, and says what it found. It raises nothing
for an answer that is missing, so that a notebook with open exercises runs to its end.
"""
