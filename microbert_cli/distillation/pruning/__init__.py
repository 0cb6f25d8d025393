"""Prunes a student while it learns: it begins as its teacher and is cut, structure by structure, to its target shape."""
