"""Short-time spectra whose frame f stands over the samples of frame f, and mel bands."""

import torch
from torch import Tensor, nn


class ShortTimeFourier(nn.Module):
    """Hann-windowed spectra, one a hop, and back.

    The window of frame f is centred on the samples [f * hop_length, (f + 1) * hop_length), so that
    F * hop_length samples have F frames. What lies outside of the audio counts as silence.

    Args:
        n_fft: samples of a window, at least `hop_length`.
        hop_length: samples of a frame.

    Raises:
        ValueError: the window is shorter than a hop, or the two differ by an odd number.
    """

    window: Tensor

    def __init__(self, n_fft: int, hop_length: int) -> None:
        super().__init__()
        if n_fft < hop_length or (n_fft - hop_length) % 2:
            raise ValueError(
                f"`n_fft` must exceed `hop_length` ({hop_length}) by an even number, "
                f"but is {n_fft}."
            )
        self.n_fft, self.hop_length = n_fft, hop_length
        self.margin = (n_fft - hop_length) // 2
        # Half a sample off, so that no weight is zero and every sample can be brought back.
        angles = 2 * torch.pi * (torch.arange(n_fft, dtype=torch.double) + 0.5) / n_fft
        self.register_buffer("window", (0.5 - 0.5 * angles.cos()).float(), persistent=False)

    @property
    def num_bins(self) -> int:
        """Frequencies of a spectrum."""
        return self.n_fft // 2 + 1

    def forward(self, audio: Tensor) -> Tensor:
        """Audio (B, F * hop_length) -> complex spectra (B, F, num_bins)."""
        return torch.fft.rfft(self.pieces(audio))

    def pieces(self, audio: Tensor) -> Tensor:
        """Audio (B, F * hop_length) -> windowed samples (B, F, n_fft)."""
        padded = nn.functional.pad(audio, (self.margin, self.margin))
        return padded.unfold(-1, self.n_fft, self.hop_length) * self.window

    def inverse(self, spectra: Tensor) -> Tensor:
        """Audio (B, F * hop_length) whose spectra are nearest to those given, (B, F, num_bins)."""
        pieces = torch.fft.irfft(spectra, n=self.n_fft) * self.window
        weights = (self.window**2).expand(1, *pieces.shape[1:])
        return self._overlap_add(pieces) / self._overlap_add(weights)

    def _overlap_add(self, pieces: Tensor) -> Tensor:
        """(B, F, n_fft) -> (B, F * hop_length)"""
        num_hops = -(-self.n_fft // self.hop_length)
        rows, num_frames = pieces.shape[:2]
        pieces = nn.functional.pad(pieces, (0, num_hops * self.hop_length - self.n_fft))
        pieces = pieces.view(rows, num_frames, num_hops, self.hop_length)
        total = pieces.new_zeros(rows, num_frames + num_hops, self.hop_length)
        for index in range(num_hops):
            total[:, index : index + num_frames] += pieces[:, :, index]
        return total.flatten(1)[:, self.margin : self.margin + num_frames * self.hop_length]


class LogMel(nn.Module):
    """Logarithms of mel-band magnitudes; a sine of full scale has magnitude 1.

    Args:
        sample_rate: of the audio.
        n_fft: samples of a window.
        hop_length: samples of a frame.
        n_mels: bands.
        floor: magnitude that counts as silence.
    """

    filters: Tensor

    def __init__(
        self, sample_rate: int, *, n_fft: int, hop_length: int, n_mels: int, floor: float
    ) -> None:
        super().__init__()
        self.transform = ShortTimeFourier(n_fft, hop_length)
        self.floor = floor
        filters = mel_filters(sample_rate, n_fft, n_mels)
        self.register_buffer("filters", filters, persistent=False)

    @property
    def gain(self) -> float:
        """Magnitude of a sine of full scale before it is scaled to 1."""
        return float(self.transform.window.sum()) / 2

    def forward(self, audio: Tensor) -> Tensor:
        """Audio (B, F * hop_length) -> (B, F, n_mels) in float64, so that no batch rounds it."""
        magnitudes = self.transform(audio).abs().double() / self.gain
        return (magnitudes @ self.filters.double().T).clamp_min(self.floor).log()


def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """Triangular weights (n_mels, n_fft // 2 + 1) of mel bands from 0 to half the sample rate.

    The bands follow Slaney's scale: linear below 1 kHz, logarithmic above. The weights of a band
    sum to one, and a band narrower than a bin takes the bin nearest to its centre.
    """
    bins = torch.arange(n_fft // 2 + 1, dtype=torch.double) * sample_rate / n_fft
    top = float(_hertz_to_mel(torch.tensor(sample_rate / 2, dtype=torch.double)))
    edges = _mel_to_hertz(torch.linspace(0, top, n_mels + 2, dtype=torch.double))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    weights = torch.minimum(rising, falling).clamp_min(0)
    empty = weights.sum(1) == 0
    nearest = (bins - centre).abs().argmin(1)
    weights[empty, nearest[empty]] = 1
    return (weights / weights.sum(1, keepdim=True)).float()


def _hertz_to_mel(hertz: Tensor) -> Tensor:
    return torch.where(
        hertz < 1000, hertz * 3 / 200, 15 + 27 / _LOG_STEP * (hertz / 1000).clamp_min(1).log()
    )


def _mel_to_hertz(mel: Tensor) -> Tensor:
    return torch.where(
        mel < 15, mel * 200 / 3, 1000 * ((mel - 15).clamp_min(0) * _LOG_STEP / 27).exp()
    )


_LOG_STEP = 1.8562979903656263  # ln 6.4: 27 mel above 1 kHz stand for a factor of 6.4
