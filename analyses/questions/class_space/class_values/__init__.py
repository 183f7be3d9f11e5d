"""Do value vectors point at the classes?"""
