"""`DuplexS2SModel`: the ModelPT that names its four parts."""

from typing import Any

from whalesong.duplex.duplex_model import DuplexModelPT
from whalesong.models.duplex_s2s.config import DuplexS2SConfig
from whalesong.models.duplex_s2s.model import DuplexS2S


class DuplexS2SModel(DuplexModelPT):
    """Duplex speech to speech with heads for text and codes on one LLM (arXiv 2505.15670)."""

    config_schema = DuplexS2SConfig

    def build_model(self, config: DuplexS2SConfig, **parts: Any) -> DuplexS2S:
        """Add embeddings and heads of codes."""
        return DuplexS2S(**parts)
