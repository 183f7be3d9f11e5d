"""The questions, by subject. A subject imports the rooms beside this one, never another subject."""
