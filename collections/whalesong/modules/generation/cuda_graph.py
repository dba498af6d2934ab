"""One step of decoding as a CUDA graph: the GPU gets one launch instead of hundreds."""

from collections.abc import Callable

import torch
from torch import Tensor

from whalesong.modules.generation.steps import StaticSteps

WARM_UP = 3


class CapturedStep:
    """A captured step, replayed on new tokens.

    Args:
        step: from tokens to hidden states; takes `steps` one position further.
        tokens: of the shape of all that come.
        steps: the decoding that is captured.
    """

    def __init__(
        self, step: Callable[[Tensor], Tensor], tokens: Tensor, steps: StaticSteps
    ) -> None:
        self._steps = steps
        self._tokens = tokens.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                with steps.rehearsal():
                    step(self._tokens)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with steps.rehearsal(), torch.cuda.graph(self._graph):
            self._hidden = step(self._tokens)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Take one step; what comes out is overwritten by the next one."""
        self._steps.cache.check_room(1)
        self._steps.cache.length += 1
        self._tokens.copy_(tokens)
        self._graph.replay()
        return self._hidden
