"""Rows of words with a tag each: how tables hold them, and where words begin among tokens."""
