"""A search for good settings as plain values: what may be tried, what was found, what to try next. No Ray here."""
