"""Long texts as windows of tokens."""
