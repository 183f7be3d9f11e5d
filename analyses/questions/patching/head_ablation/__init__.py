"""Which heads and MLPs does the answer need? Zero, mean and resample ablation side by side."""
