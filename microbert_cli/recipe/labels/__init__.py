"""Errors of labels."""
