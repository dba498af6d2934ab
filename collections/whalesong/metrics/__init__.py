"""Metrics that sum over all examples and ranks before they divide."""
