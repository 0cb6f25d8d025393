"""What distillation adds to training: teachers and their cache, the layer map, how a student is initialised."""
