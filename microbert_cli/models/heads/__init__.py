"""Heads of classifiers: the layers that they end in."""
