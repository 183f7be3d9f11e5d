"""What do the head, a translator and a probe read at every layer?"""
