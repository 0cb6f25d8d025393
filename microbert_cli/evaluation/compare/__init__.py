"""Methods and ablations side by side: rows, grid search, costs, differences, table and plot."""
