"""What runs a training: trainer, callbacks, ranks, averages, counts."""
