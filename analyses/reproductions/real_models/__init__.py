"""What one real checkpoint does: analyses run on it, saved, and put on one page beside what was published.

`runs` says what is run and how large, `measuring` runs it and notes what it cost, `tables` says which rows of a result
are shown (`shown`: in which form), `page` writes them down.
"""
