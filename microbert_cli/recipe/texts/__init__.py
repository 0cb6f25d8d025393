"""What a recipe may say of its texts."""
