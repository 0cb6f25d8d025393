"""Scores of models: metrics, predictions of a split, baselines, speed, files for a test server."""
