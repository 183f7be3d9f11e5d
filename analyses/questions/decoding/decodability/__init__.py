"""What can a probe read from every role of token at every layer?"""
