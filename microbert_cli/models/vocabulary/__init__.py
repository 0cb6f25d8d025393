"""Smaller vocabularies: which tokens have to stay, tokenizers without the others, models without the others' rows."""
