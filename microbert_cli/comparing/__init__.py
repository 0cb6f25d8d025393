"""Methods and ablations side by side: which rows, how they are run, what they cost, and the table they end in."""
