"""TinyBERT's Algorithm 1: copies of training sentences with words replaced by a masked LM or by word vectors."""
