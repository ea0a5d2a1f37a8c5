"""The trained model as a value: its networks, posterior inference, its prior's normaliser, and where a run lies."""
