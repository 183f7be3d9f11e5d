"""Published experiments as data files: what was run on what, and the values that were reported.

`recipe` reads and checks them, `missing` says what this machine lacks, `run` runs them, `figures` draws the comparison.
"""
