"""Which tokens carry a count, against where it can be read?"""
