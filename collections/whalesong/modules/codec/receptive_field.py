"""How many frames around a frame its samples depend on, from the convolutions of a decoder."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Reach:
    """A layer that keeps the rate: each output looks so far to the left and to the right."""

    left: int
    right: int

    def inputs(self, first: int, last: int) -> tuple[int, int]:
        """The inputs on which the outputs `first..last` depend."""
        return first - self.left, last + self.right


@dataclass(frozen=True)
class Upsampling:
    """A transposed convolution whose first `trim` outputs are cut off."""

    kernel: int
    stride: int
    trim: int

    def inputs(self, first: int, last: int) -> tuple[int, int]:
        """The inputs on which the outputs `first..last` depend."""
        begin = -(-(first + self.trim - self.kernel + 1) // self.stride)
        return begin, (last + self.trim) // self.stride


def receptive_field(layers: Iterable[Reach | Upsampling]) -> tuple[int, int]:
    """Frames to the left and to the right on which the samples of one frame depend.

    Args:
        layers: of the decoder from codes to samples; parallel branches may stand one after the
            other, which can only widen the result.
    """
    layers = list(layers)
    ratio = math.prod(layer.stride for layer in layers if isinstance(layer, Upsampling))
    first, last = 0, ratio - 1
    for layer in reversed(layers):
        first, last = layer.inputs(first, last)
    return max(-first, 0), max(last, 0)


def conv_reach(conv: nn.Conv1d, *, causal: bool = False, reflect: bool = False) -> Reach:
    """Reach of a convolution of stride 1 that is padded to keep the length.

    Args:
        conv: the convolution.
        causal: all padding is to the left; else it is split, the larger half to the left.
        reflect: the padding mirrors the first samples, so that these also look to the right.
    """
    extent = (conv.kernel_size[0] - 1) * conv.dilation[0]
    right = 0 if causal else extent // 2
    left = extent - right
    return Reach(left, max(left, right) if reflect else right)


def _padded_reach(conv: nn.Conv1d) -> Reach:
    extent = (conv.kernel_size[0] - 1) * conv.dilation[0]
    left = extent // 2 if conv.padding == "same" else int(conv.padding[0])
    right = extent - left
    return Reach(left, max(left, right) if conv.padding_mode == "reflect" else right)


def decoder_layers(decoder: nn.Module) -> list[Reach | Upsampling]:
    """The layers of a decoder whose convolutions do their padding themselves, in their order."""
    layers: list[Reach | Upsampling] = []
    for module in decoder.modules():
        if isinstance(module, nn.Conv1d):
            layers.append(_padded_reach(module))
        elif isinstance(module, nn.ConvTranspose1d):
            layers.append(
                Upsampling(module.kernel_size[0], module.stride[0], int(module.padding[0]))
            )
        elif isinstance(module, nn.Upsample):
            factor = int(module.scale_factor)
            layers.append(Upsampling(factor, factor, 0))
    return layers
