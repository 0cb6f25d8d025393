"""Heads of classifiers in training: what new ones start with, and the units that scores are learnt in."""
