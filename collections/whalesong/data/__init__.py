"""From `input_cfg` to batches: examples, the batch plan, the loader and exact resume."""
