"""Does CLS hold the low spatial frequencies?"""
