"""What image tokens know of the class: measurements in the space of a classifier's own class vectors.

Vilas, Schaumlöffel and Roig, "Analyzing Vision Transformers for Image Classification in Class Embedding Space",
NeurIPS 2023. The modules here measure batch by batch; the analyses put models, data, controls and figures around them.
"""
