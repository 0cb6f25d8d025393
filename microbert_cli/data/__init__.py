"""Task data: files become examples, examples become token ids, token ids become batches."""
