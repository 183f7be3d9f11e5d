"""Is the class clearer on the object than beside it?"""
