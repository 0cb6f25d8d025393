"""Plug-ins, found by file name: losses, methods, students, tasks, augmenters, machines."""
