"""Students, one architecture a file, found by file name: TOML for what transformers has, Python for what it lacks."""
