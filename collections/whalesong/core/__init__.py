"""How any model is run: configuration, training contract, archives, checkpoints. No speech."""
