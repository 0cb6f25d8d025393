"""Small checks of a recipe before it runs: each executes a little of what the run will do, and leaves nothing behind."""
