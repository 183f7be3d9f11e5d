"""What can be read? Probes on every role and layer, and lenses."""
