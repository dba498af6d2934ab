"""SEANet decoders of `transformers`: their reach, and streaming that decodes nothing twice."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.models.encodec.modeling_encodec import EncodecConv1d, EncodecConvTranspose1d

from whalesong.modules.codec.codec import Codec, StreamingDecoder
from whalesong.modules.codec.receptive_field import (
    Reach,
    Upsampling,
    conv_reach,
    receptive_field,
)


def seanet_layers(decoder: nn.Module) -> list[Reach | Upsampling]:
    """The convolutions of a SEANet decoder, or of a part of it, in their order."""
    layers: list[Reach | Upsampling] = []
    for module in decoder.modules():
        if isinstance(module, EncodecConv1d):
            reflect = module.pad_mode == "reflect"
            layers.append(conv_reach(module.conv, causal=module.causal, reflect=reflect))
        elif isinstance(module, EncodecConvTranspose1d):
            layers.append(_upsampling(module))
    return layers


def _upsampling(module: EncodecConvTranspose1d) -> Upsampling:
    kernel, stride = module.conv.kernel_size[0], module.conv.stride[0]
    cut = kernel - stride
    right = math.ceil(cut * module.trim_right_ratio) if module.causal else cut // 2
    return Upsampling(kernel, stride, cut - right)


@dataclass(frozen=True)
class _Stage:
    """A part of the decoder, with what `StreamingDecoder` asks of a codec."""

    decode: Callable[[Tensor], Tensor]
    receptive_field: tuple[int, int]
    downsampling_ratio: int
    num_channels: int


class SeanetStreamingDecoder(StreamingDecoder):
    """Decodes codes piece by piece; the LSTM goes on from where it was.

    Args:
        codec: the codec.
        latents: turns codes (B, K, F) into what the decoder gets, (B, D, F).
        layers: of the decoder: a convolution, the LSTM, and all that follows.
    """

    def __init__(
        self, codec: Codec, *, latents: Callable[[Tensor], Tensor], layers: Sequence[nn.Module]
    ) -> None:
        super().__init__(codec)
        first, memory, *others = layers
        rest = nn.Sequential(*others)
        self._before = StreamingDecoder(
            _Stage(
                decode=lambda codes: first(latents(codes)),
                receptive_field=receptive_field(seanet_layers(first)),
                downsampling_ratio=1,
                num_channels=first.conv.out_channels,
            )
        )
        self._lstm = memory.lstm
        self._state: tuple[Tensor, Tensor] | None = None
        self._after = StreamingDecoder(
            _Stage(
                decode=rest,
                receptive_field=receptive_field(seanet_layers(rest)),
                downsampling_ratio=codec.downsampling_ratio,
                num_channels=codec.num_channels,
            )
        )

    def push(self, codes: Tensor) -> Tensor:
        """Take frames (B, K, f), which may be none; return samples (B, C, n) that are settled."""
        self.codec.check_codes(codes)
        with torch.no_grad(), torch.autocast(codes.device.type, enabled=False):
            return self._after.push(self._remember(self._before.push(codes)))

    def flush(self) -> Tensor:
        """Return the samples that were waiting for frames that did not come."""
        hidden = self._before.flush()
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
            settled = self._after.push(self._remember(hidden))
            return torch.cat([settled, self._after.flush()], dim=2)

    def _remember(self, hidden: Tensor) -> Tensor:
        """Run the LSTM over the next frames (B, D, f)."""
        if hidden.shape[2] == 0:
            return hidden
        frames = hidden.permute(2, 0, 1)
        output, self._state = self._lstm(frames, self._state)
        return (output + frames).permute(1, 2, 0)
