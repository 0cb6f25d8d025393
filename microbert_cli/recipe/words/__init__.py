"""Tasks with labels of words: what a recipe may ask of them."""
