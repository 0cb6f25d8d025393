"""Kinds of task, one a file, found by file name; the interface is in recipe/task_kinds.py."""
