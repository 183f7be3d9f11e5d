"""Do active memories promote the class?"""
