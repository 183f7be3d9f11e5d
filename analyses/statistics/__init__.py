"""Intervals, tests, ranks and rates."""
