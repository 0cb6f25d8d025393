"""Models that write a text: an encoder reads the source, a decoder writes the target token by token."""
