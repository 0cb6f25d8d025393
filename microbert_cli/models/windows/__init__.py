"""Models that read a long text in windows: what their configuration says of it, and logits of windows as those of a row."""
