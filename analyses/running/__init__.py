"""How a question is asked and answered: the registry, models, results, notes and the report."""
