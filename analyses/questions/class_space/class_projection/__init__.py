"""How identifiable is the class in every token, at every layer?"""
