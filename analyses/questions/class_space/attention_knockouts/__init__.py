"""What is left of the class when edges of attention are cut?"""
