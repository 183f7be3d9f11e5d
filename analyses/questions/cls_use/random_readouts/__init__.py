"""What can be read through CLS tokens the network has never seen?"""
