"""Scores of texts that a model wrote, and the writing itself."""
