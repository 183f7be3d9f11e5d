"""Where figures end up: at the width of a window, or on paper."""
