"""Loss and accuracy of the two channels of a duplex model, for teacher-forced frames."""

from typing import Any

import torch

_COUNTS = ("frames", "text_nll", "text_correct", "spoken", "spoken_correct")


class ChannelAccuracy:
    """Accuracy over batches; a `core.parts.Metric` over the "sums" of a loss.

    Args:
        num_codebooks: K.
    """

    def __init__(self, num_codebooks: int) -> None:
        self.num_codebooks = num_codebooks
        self.reset()

    def update(self, rows: list[dict[str, Any]]) -> None:
        """Add the sums of batches: numbers of frames, hits and nats; (K,) for codes."""
        for row in rows:
            values = [row[name].detach().cpu().double().reshape(1) for name in _COUNTS]
            values += [row[name].detach().cpu().double() for name in ("audio_nll", "audio_correct")]
            self._sums += torch.cat(values)

    def totals(self) -> list[float]:
        """The sums."""
        return self._sums.tolist()

    def compute(self, totals: list[float]) -> dict[str, float]:
        """Means over frames.

        Returns:
            `text_loss` and `audio_loss` in nats, `text_acc` of all frames and `spoken_acc` of those
            that are not padding, `audio_acc` of codes, and `audio_acc_q0`, ... of each codebook.
        """
        frames, text_nll, text_correct, spoken, spoken_correct = totals[: len(_COUNTS)]
        audio_nll = totals[len(_COUNTS) : len(_COUNTS) + self.num_codebooks]
        audio_correct = totals[len(_COUNTS) + self.num_codebooks :]
        if not frames:
            return {}
        codes = frames * self.num_codebooks
        values = {
            "text_loss": text_nll / frames,
            "text_acc": text_correct / frames,
            "audio_loss": sum(audio_nll) / codes,
            "audio_acc": sum(audio_correct) / codes,
        }
        if spoken:
            values["spoken_acc"] = spoken_correct / spoken
        each = {f"audio_acc_q{k}": count / frames for k, count in enumerate(audio_correct)}
        return values | each

    def reset(self) -> None:
        """Forget all counts."""
        self._sums = torch.zeros(len(_COUNTS) + 2 * self.num_codebooks, dtype=torch.float64)
