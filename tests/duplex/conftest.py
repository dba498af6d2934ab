"""Duplex models that have something to say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch


@pytest.fixture(scope="session")
def talkative(build_duplex: Callable[..., Any]) -> Callable[..., Any]:
    """Builds models that begin turns, say words and end turns, all by chance."""

    def build(family: str = "duplex_s2s", **changes: Any) -> Any:
        settings = {"text_temperature": 1.0, "temperature": 1.0, "seed": 5}
        made = build_duplex(family, generation=settings, **changes)
        words = made.tokenizer.text_to_ids("turn on the light")
        head = made.model.llm.get_output_embeddings().weight
        with torch.no_grad():
            direction = head[7].clone() * 1000
            head.zero_()
            head[[made.model.ids.bos, *words[:2]]] = direction
            head[[made.model.ids.eos, *words[2:]]] = -direction
        return made

    return build
