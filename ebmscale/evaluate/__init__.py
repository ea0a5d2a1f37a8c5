"""Measures of a trained model: reconstruction, Frechet distance, likelihood, anomaly scores, samples."""
