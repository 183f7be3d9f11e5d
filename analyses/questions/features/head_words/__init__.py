"""In which words do the heads speak, and which of them write an image's answer?"""
