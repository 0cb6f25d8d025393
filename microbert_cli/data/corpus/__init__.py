"""Plain text: documents become memory-mapped blocks of token ids, and some of their tokens are masked."""
