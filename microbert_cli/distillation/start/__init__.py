"""What the weights of a new student begin as."""
