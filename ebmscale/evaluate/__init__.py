"""What a trained run is worth: measures, pictures, and the report on one page."""
