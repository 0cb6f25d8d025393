"""Export directories as they are read without torch and transformers: their files, sessions, configuration, tokenizer."""
