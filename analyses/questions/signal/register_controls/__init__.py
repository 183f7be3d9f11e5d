"""Does a model need what its registers hold, or only that something like it is there?"""
