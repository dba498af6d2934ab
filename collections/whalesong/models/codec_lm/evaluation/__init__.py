"""Evaluation on held-out clips: likelihood, distances, scores, and a report of them."""
