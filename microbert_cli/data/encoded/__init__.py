"""Token ids of many rows: in memory, or in files of the cache."""
