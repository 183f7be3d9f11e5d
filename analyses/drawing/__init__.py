"""What figures have in common: colours, panels, and how rows are picked."""
