"""HTML pages of runs and comparisons, and their pictures."""
