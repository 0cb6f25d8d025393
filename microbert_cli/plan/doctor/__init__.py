"""Checks of a recipe before it runs: each executes a little of the run and leaves nothing behind."""
