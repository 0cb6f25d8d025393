"""Plain text: documents become memory-mapped blocks of token ids, and words of them are masked."""
