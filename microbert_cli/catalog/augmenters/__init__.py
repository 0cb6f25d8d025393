"""Augmenters, one a file, found by file name."""
