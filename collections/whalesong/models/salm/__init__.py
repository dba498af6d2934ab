"""SALM: speech perception whose frames stand in the prompt of an LLM (arXiv 2310.09424)."""
