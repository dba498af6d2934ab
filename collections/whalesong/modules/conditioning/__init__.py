"""Conditioners: text, numbers, classes, audio and codes as embeddings with masks."""
