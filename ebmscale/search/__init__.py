"""Searches for settings: spaces, proposals, records, the driver on Ray Tune, a trial's process and the live table."""
