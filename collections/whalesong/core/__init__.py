"""How any model is run: configuration, training contract, archives and checkpoints. Knows no speech."""
