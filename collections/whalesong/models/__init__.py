"""One folder a model family, the same rooms in each."""
