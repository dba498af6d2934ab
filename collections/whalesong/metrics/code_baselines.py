"""What codes can be foretold without a model: the least that a model of codes has to beat."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

NOTHING = -1
"""Where a baseline foretells no code."""


def repeat_last(codes: Tensor, begin: int) -> Tensor:
    """Each code is that of the frame before.

    Args:
        codes: of a clip, (K, F).
        begin: first frame of the target, above 0.

    Returns:
        Codes (K, F - begin) foretold for the target.
    """
    return codes[:, begin - 1 : -1]


def copy_loop(codes: Tensor, begin: int) -> Tensor:
    """The prompt's loop, played on: the arguments are those of `repeat_last`, `begin` above 1.

    Nothing of the target is looked at.
    """
    prompt, num_frames = codes[:, :begin], codes.shape[1] - begin
    loop = prompt[:, -find_loop(prompt) :]
    return loop.repeat(1, num_frames // loop.shape[1] + 1)[:, :num_frames]


def find_loop(prompt: Tensor) -> int:
    """Frames after which a prompt (K, f) is most like itself, of several the fewest.

    At least a third of the prompt is compared, so that no loop is found by chance.
    """
    longest = max(prompt.shape[1] * 2 // 3, 1)
    lags = range(1, longest + 1)
    return max(lags, key=lambda lag: float((prompt[:, lag:] == prompt[:, :-lag]).double().mean()))


class CodeBaselines:
    """Baselines for the codes of clips behind a prompt, two of them learned from other clips.

    Args:
        train: codes (K, F) of clips to count in.
        codebook_size: V.
    """

    def __init__(self, train: Iterable[Tensor], *, codebook_size: int) -> None:
        self.codebook_size = codebook_size
        bigrams, levels = None, None
        for codes in train:
            if bigrams is None:
                bigrams = torch.zeros(len(codes), codebook_size**2, dtype=torch.long)
                levels = torch.zeros(len(codes) - 1, codebook_size**2, dtype=torch.long)
            bigrams += self._count(codes[:, :-1], codes[:, 1:])
            levels += self._count(codes[:-1], codes[1:])
        if bigrams is None:
            raise ValueError("`train` must hold at least one clip, but is empty.")
        self._next, self._above = self._likeliest(bigrams), self._likeliest(levels)

    def bigram(self, codes: Tensor, begin: int) -> Tensor:
        """The code that mostly follows the one before; arguments of `repeat_last`."""
        return self._next.gather(1, codes[:, begin - 1 : -1])

    def level_below(self, codes: Tensor, begin: int) -> Tensor:
        """The code that mostly stands above that of the quantizer below, in the same frame.

        Nothing is foretold for the first quantizer.
        """
        foretold = torch.full_like(codes[:, begin:], NOTHING)
        foretold[1:] = self._above.gather(1, codes[:-1, begin:])
        return foretold

    def accuracies(self, clips: Iterable[tuple[Tensor, int]]) -> dict[str, list[float | None]]:
        """Share of the target's codes that each baseline foretells, by quantizer.

        Args:
            clips: codes (K, F) of each, with the first frame of its target, above 1.

        Returns:
            Baseline -> K shares, None for a quantizer of which it foretells nothing.
        """
        baselines = {
            "repeat": repeat_last,
            "bigram": self.bigram,
            "level below": self.level_below,
            "loop copy": copy_loop,
        }
        pairs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in baselines}
        for codes, begin in clips:
            for name, foretell in baselines.items():
                pairs[name].append((foretell(codes, begin), codes[:, begin:]))
        return {name: matches(of_baseline) for name, of_baseline in pairs.items()}

    def _count(self, given: Tensor, codes: Tensor) -> Tensor:
        """How often each pair of ids (q, n) occurs in each row, (q, V * V)."""
        pairs = given * self.codebook_size + codes
        counts = torch.zeros(len(pairs), self.codebook_size**2, dtype=torch.long)
        return counts.scatter_add_(1, pairs, torch.ones_like(pairs))

    def _likeliest(self, counts: Tensor) -> Tensor:
        """(q, V): the code that occurs most often with each id, in all where the id does not."""
        table = counts.view(len(counts), self.codebook_size, self.codebook_size)
        anywhere = table.sum(1).argmax(1)[:, None]
        return torch.where(table.sum(2) > 0, table.argmax(2), anywhere)


def matches(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[float | None]:
    """Share of codes that are right, by quantizer, over pairs of foretold and true codes (K, n).

    None for a quantizer of which nothing is foretold.
    """
    foretold, true = (torch.cat(codes, dim=1) for codes in zip(*pairs, strict=True))
    asked = (foretold != NOTHING).sum(1).tolist()
    right = (foretold == true).sum(1).tolist()
    return [hits / count if count else None for hits, count in zip(right, asked, strict=True)]
