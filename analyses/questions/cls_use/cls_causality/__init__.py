"""Where is CLS decodable, and where is it used?"""
