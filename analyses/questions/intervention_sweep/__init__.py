"""Any list of interventions over any data."""
