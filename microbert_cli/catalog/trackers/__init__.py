"""Trackers of experiments, one a file, found by file name.

NEEDS                          the package that it needs; "" = none
Tracker(name, folder, values)  one run: its name, a folder for what it writes, the recipe's values
log(phase, step, numbers)      numbers of a step
close()
"""
