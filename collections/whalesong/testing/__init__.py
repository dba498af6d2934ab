"""Tests that any model of the house can be put to, an external one by its name, too."""

from whalesong.testing.check import Report, check_model

__all__ = ["Report", "check_model"]
