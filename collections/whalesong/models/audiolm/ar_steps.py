"""The autoregressive half behind the prompts of a batch, for the guided step model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from whalesong.models.audiolm.ar import ARDecoder, Prompt
from whalesong.models.audiolm.arrangement import Arrangement
from whalesong.modules.attention import prompt_target_mask
from whalesong.modules.generation.guided import StepEmbedding, repeat_rows
from whalesong.modules.kv_cache import KVCache


class PromptedNetwork:
    """Begins the target of each row behind its prompt (a `StepNetwork`).

    Prompts are padded at the left, so that all targets begin at the same slot of the cache.

    Args:
        ar: in evaluation mode.
        arrangement: of B rows; of the target only its length counts, where a prompt is behind it.
        conditions: of the B rows, (B, G), for each variant of the conditions.
        max_steps: P, steps that a target can have, the empty one included.
    """

    def __init__(
        self,
        ar: ARDecoder,
        arrangement: Arrangement,
        conditions: Sequence[Tensor | None],
        *,
        max_steps: int,
    ) -> None:
        self._ar, self._max_steps = ar, max_steps
        self.num_codebooks, self.codebook_size = ar.num_columns, ar.codebook_size
        self.transformer, self.heads, self.logit_bias = ar.transformer, ar.heads, ar.logit_bias
        tables = [table.weight for table in ar.target_embeddings]
        self.embed_step = StepEmbedding(tables, ar.num_columns)
        self._prompt = ar.prompt(arrangement)
        self._num_variants = len(conditions)
        self._condition = None if conditions[0] is None else torch.cat(list(conditions))

    def begin(self, tokens: Tensor) -> tuple[Tensor, KVCache]:
        """Run prompts and first steps (B, C, p) through all layers, for all variants.

        Returns:
            What comes out at the last step (R, D), and the cache of R rows, one variant after the
            other.
        """
        embeds, mask, positions = right_aligned(self._prompt)
        steps = self._ar.embed_steps(tokens)
        index = torch.arange(steps.shape[1], device=steps.device)
        positions = torch.cat((positions, self._prompt.start[:, None] + index), dim=1)
        is_prompt = torch.arange(positions.shape[1], device=steps.device) < embeds.shape[1]
        is_prompt = is_prompt.expand(positions.shape)
        mask = torch.nn.functional.pad(mask, (0, steps.shape[1]), value=True)
        seen = prompt_target_mask(
            is_prompt, mask, causal_prompt=self._ar.causal_prompt, causal_target=True
        )
        x = torch.cat((embeds, steps), dim=1)
        cache = self.transformer.init_cache(
            len(x) * self._num_variants,
            embeds.shape[1] + self._max_steps,
            condition=self._condition,
        )
        x, mask, seen, positions = (
            repeat_rows(part, self._num_variants) for part in (x, mask, seen, positions)
        )
        hidden = self.transformer(x, mask=mask, seen=seen, positions=positions, cache=cache)
        return hidden[:, -1], cache


def right_aligned(prompt: Prompt) -> tuple[Tensor, Tensor, Tensor]:
    """The steps of each prompt at the right: embeds (B, S, D), mask and positions (B, S)."""
    longest = prompt.embeds.shape[1]
    index = torch.arange(longest, device=prompt.embeds.device)
    index = index - (longest - prompt.lens)[:, None]
    mask, index = index >= 0, index.clamp(min=0)
    embeds = prompt.embeds.gather(1, index[..., None].expand(prompt.embeds.shape))
    return embeds, mask, prompt.positions.gather(1, index)
