"""Rows of tokens into which tokens are inserted without moving any that is there."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from whalesong.core.parts import Batch
from whalesong.modules.text_transformer import count_positions


@dataclass(frozen=True)
class GrowingRows:
    """Rows that grow: a new token is stored at the end, and its position says where it belongs.

    A model that sees both sides by rotary positions does not care where a token is stored.
    """

    rows: Tensor
    """(A,), which rows of the batch these are."""
    input_ids: Tensor
    """(A, T)."""
    attention_mask: Tensor
    """(A, T), True = keep."""
    prompt_mask: Tensor
    """(A, T), True up to BOS, which is in the same column of all rows."""
    gap_mask: Tensor
    """(A, T), True where a token may come right behind."""
    positions: Tensor
    """(A, T), from the first token of the row on."""

    @classmethod
    def start(cls, batch: Batch) -> "GrowingRows":
        """The rows of a batch for prediction."""
        mask = batch["attention_mask"]
        return cls(
            rows=torch.arange(len(mask), device=mask.device),
            input_ids=batch["input_ids"],
            attention_mask=mask,
            prompt_mask=batch["prompt_mask"],
            gap_mask=batch["gap_mask"],
            positions=count_positions(mask),
        )

    def select(self, keep: Tensor) -> "GrowingRows":
        """The rows where `keep` (A,) is True."""
        return GrowingRows(**{name: value[keep] for name, value in vars(self).items()})

    def insert(self, columns: Tensor, tokens: Tensor) -> "GrowingRows":
        """Insert a token into each row.

        Args:
            columns: (A,), where the token is that the new one comes right behind.
            tokens: (A,).
        """
        before = self.positions.gather(1, columns[:, None])
        positions = self.positions + (self.positions > before)
        new = torch.ones_like(before, dtype=torch.bool)
        return replace(
            self,
            input_ids=torch.cat((self.input_ids, tokens[:, None]), dim=1),
            attention_mask=torch.cat((self.attention_mask, new), dim=1),
            prompt_mask=torch.cat((self.prompt_mask, ~new), dim=1),
            gap_mask=torch.cat((self.gap_mask, new), dim=1),
            positions=torch.cat((positions, before + 1), dim=1),
        )

    def num_tokens(self) -> Tensor:
        """Tokens behind the prompt of each row, (A,)."""
        return (self.attention_mask & ~self.prompt_mask).sum(1)

    def target_ids(self, length: int, pad_id: int) -> Tensor:
        """The tokens behind the prompt in their order, (A, length), with PAD behind them."""
        prompt_lens = self.prompt_mask.sum(1, keepdim=True)
        is_target = self.attention_mask & ~self.prompt_mask
        place = (self.positions - prompt_lens).masked_fill(~is_target, length)
        ids = self.input_ids.new_full((len(place), length + 1), pad_id)
        return ids.scatter(1, place, self.input_ids)[:, :length]
