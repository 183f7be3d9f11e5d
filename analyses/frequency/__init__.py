"""What low frequencies have to do with a token: filters, similarity, regression on band energies."""
