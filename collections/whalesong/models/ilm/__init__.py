"""ILM: an insertion (infilling) language model."""
