"""Modality adapters of our own; NeMo's (identity, conformer, multi-layer) stand beside them.

An adapter maps encoder output (A, D_in, F) and its lengths (A,) to (A, D_out, F') and new lengths,
and tells `stages`, so that the data side can count frames without running it.
"""

import torch
from torch import Tensor, nn

from whalesong.modules.frames import Queries, Strided, mask_from_lens


class StackingMLPAdapter(nn.Module):
    """Stack neighbouring frames and map them into the embedding space of the LLM with an MLP.

    Args:
        feat_in: width of an encoder frame.
        output_dim: width of an LLM embedding.
        stacking_factor: frames joined into one; 1 keeps the frame rate.
        hidden_dim: width of the hidden layers.
        num_layers: linear layers; 1 is a plain projection.
        dropout: after each hidden layer.
    """

    def __init__(
        self,
        *,
        feat_in: int,
        output_dim: int,
        stacking_factor: int = 1,
        hidden_dim: int = 512,
        num_layers: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.stacking_factor = stacking_factor
        widths = [feat_in * stacking_factor, *[hidden_dim] * (num_layers - 1), output_dim]
        layers: list[nn.Module] = [nn.LayerNorm(widths[0])]
        for index, (width_in, width_out) in enumerate(zip(widths, widths[1:], strict=False)):
            if index:
                layers += [nn.GELU(), nn.Dropout(dropout)]
            layers.append(nn.Linear(width_in, width_out))
        self.layers = nn.Sequential(*layers)

    @property
    def subsampling_factor(self) -> int:
        """Encoder frames per output frame, as NeMo's perception module asks for it."""
        return self.stacking_factor

    @property
    def stages(self) -> tuple[Strided, ...]:
        """How the frame count changes."""
        if self.stacking_factor == 1:
            return ()
        return (Strided(kernel=self.stacking_factor, stride=self.stacking_factor, ceil=True),)

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Map (A, D_in, F) with lengths (A,) to (A, D_out, ceil(F / stacking_factor)).

        Frames beyond an audio's length count as zero, so that a row does not depend on its batch.
        """
        frames = audio_signal.transpose(1, 2)  # (A, F, D_in)
        frames = frames * mask_from_lens(length, frames.shape[1])[:, :, None].to(frames.dtype)
        missing = -frames.shape[1] % self.stacking_factor
        frames = nn.functional.pad(frames, (0, 0, 0, missing))
        stacked = frames.unflatten(1, (-1, self.stacking_factor)).flatten(2)
        return self.layers(stacked).transpose(1, 2), (
            length + self.stacking_factor - 1
        ) // self.stacking_factor


class QFormerAdapter(nn.Module):
    """Learned queries attend to the frames of each window of audio (BLIP-2; SALMONN's windows).

    Args:
        feat_in: width of an encoder frame.
        output_dim: width of an LLM embedding.
        num_queries: frames given for each window.
        window_frames: encoder frames of a window; None takes the whole audio as one.
        num_layers: transformer layers, each with self-attention among queries and cross-attention.
        num_heads: attention heads; divides `feat_in`.
        dropout: in the layers.
    """

    def __init__(
        self,
        *,
        feat_in: int,
        output_dim: int,
        num_queries: int = 1,
        window_frames: int | None = None,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.window_frames = window_frames
        self.queries = nn.Parameter(torch.randn(num_queries, feat_in) * feat_in**-0.5)
        layer = nn.TransformerDecoderLayer(
            feat_in, num_heads, 4 * feat_in, dropout, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerDecoder(layer, num_layers, norm=nn.LayerNorm(feat_in))
        self.proj = nn.Linear(feat_in, output_dim)

    @property
    def stages(self) -> tuple[Queries]:
        """How the frame count changes."""
        return (Queries(len(self.queries), self.window_frames),)

    def forward(self, audio_signal: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Map (A, D_in, F), lengths (A,) to (A, D_out, windows * num_queries), new lengths."""
        frames = audio_signal.transpose(1, 2)  # (A, F, D_in)
        window = self.window_frames or frames.shape[1]
        frames = nn.functional.pad(frames, (0, 0, 0, -frames.shape[1] % window))
        keep = mask_from_lens(length, frames.shape[1]).unflatten(
            1, (-1, window)
        )  # (A, windows, window)
        num_windows = keep.shape[1]
        memory = frames.unflatten(1, (-1, window)).flatten(0, 1)
        # A window behind the end would have nothing to attend to; its length cuts it off below.
        hidden = ~keep.flatten(0, 1) & keep.flatten(0, 1).any(dim=1, keepdim=True)
        queries = self.queries.expand(len(memory), -1, -1)
        answers = self.layers(queries, memory, memory_key_padding_mask=hidden)
        answers = self.proj(answers).unflatten(0, (-1, num_windows)).flatten(1, 2)
        return answers.transpose(1, 2), keep.any(dim=2).sum(dim=1) * len(self.queries)
