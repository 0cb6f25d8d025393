"""The training loop and what it trains with: losses and their weights, optimisers, phases, checkpoints."""
