"""Students, one architecture per file, found by file name: TOML for those of transformers, Python for others."""
