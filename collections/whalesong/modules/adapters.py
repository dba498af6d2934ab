"""Modality adapters of our own; NeMo's (identity, conformer, Q-former, multi-layer) stand beside them in YAML.

An adapter maps encoder output (A, D_in, F) and its lengths (A,) to (A, D_out, F') and new lengths, and
tells `stages`, so that the data side can count frames without running it.
"""

from torch import Tensor, nn

from whalesong.modules.frames import Strided, mask_from_lens


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
        return self.layers(stacked).transpose(1, 2), (length + self.stacking_factor - 1) // self.stacking_factor
