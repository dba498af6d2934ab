"""SALM: speech perception whose frames stand in the prompt of a language model (arXiv 2310.09424)."""
