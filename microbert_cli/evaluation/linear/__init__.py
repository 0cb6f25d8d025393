"""The linear models that every table of results has beside students: of texts, and of words."""
