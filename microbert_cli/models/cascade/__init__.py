"""Two models as one: a small one that answers where it is sure, and a big one for the other rows."""
