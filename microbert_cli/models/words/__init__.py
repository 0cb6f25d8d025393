"""Models that answer for every word of a text: tags, the entities that they stand for, logits by word."""
