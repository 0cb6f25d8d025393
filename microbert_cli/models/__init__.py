"""Models on disk and in memory: found, loaded, built, run, measured, saved."""
