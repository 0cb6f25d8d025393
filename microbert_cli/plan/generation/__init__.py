"""What stages of tasks of texts cost."""
