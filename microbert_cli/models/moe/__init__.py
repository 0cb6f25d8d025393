"""Mixtures of experts: a BERT with experts in the place of feed-forward networks."""
