"""Rows of a source and a target as token ids, for what writes the target and for what fills it in."""
