"""The `model` section of DuplexS2SModel (specification: speechlm2 configuration files)."""

from whalesong.duplex.config import DuplexConfig


class DuplexS2SConfig(DuplexConfig):
    """The LLM itself predicts the agent's codes beside the text."""
