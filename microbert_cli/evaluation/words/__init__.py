"""Scores of words: logits row by row, entity F1, accuracy."""
