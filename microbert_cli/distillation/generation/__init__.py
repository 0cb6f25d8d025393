"""C-MLM: a masked-LM that fills in targets teaches a student that writes them from left to right."""
