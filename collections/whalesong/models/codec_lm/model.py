"""`AudioLanguageModel`: a pattern of codes through a backbone, with one table and one head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whalesong.models.codec_lm.backbone import ContinuousTransformerAudioLMBackbone
from whalesong.modules.codebook_patterns import PatternProvider
from whalesong.modules.conditioning.conditioner import Condition, side_by_side


@dataclass
class LMOutput:
    """Logits that are aligned with the codes: no shift is left to the loss."""

    logits: Tensor
    """(B, K, F, V)"""
    mask: Tensor
    """(B, K, F) bool, True where the row has a code."""


@dataclass
class RoutedConditions:
    """Conditions by the way they take into the backbone."""

    memory: Condition | None = None
    """For cross-attention, (B, S, C)."""
    prepend: Condition | None = None
    """In front of the sequence, (B, S, C)."""
    global_cond: Tensor | None = None
    """For every block, (B, number of global conditions * C)."""


class AudioLanguageModel(nn.Module):
    """Predicts codes of an audio codec from the ones before them in the order of a pattern.

    Args:
        pattern_provider: order of the codes; gives the number of codebooks K.
        backbone: the transformer.
        codebook_size: V; id V is the special id of steps without a code.
        cross_attention_cond_ids: conditions for cross-attention, concatenated in this order.
        prepend_cond_ids: conditions in front of the sequence, in this order.
        global_cond_ids: conditions of every block, concatenated along their width.
    """

    def __init__(
        self,
        *,
        pattern_provider: PatternProvider,
        backbone: ContinuousTransformerAudioLMBackbone,
        codebook_size: int,
        cross_attention_cond_ids: Sequence[str] = (),
        prepend_cond_ids: Sequence[str] = (),
        global_cond_ids: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.pattern_provider = pattern_provider
        self.num_codebooks = pattern_provider.num_codebooks
        self.codebook_size = codebook_size
        self.cross_attention_cond_ids = list(cross_attention_cond_ids)
        self.prepend_cond_ids = list(prepend_cond_ids)
        self.global_cond_ids = list(global_cond_ids)
        rows = codebook_size + 1
        self.embedding = nn.Embedding(self.num_codebooks * rows, backbone.d_model)
        self.backbone = backbone
        self.heads = nn.Linear(backbone.d_model, self.num_codebooks * codebook_size, bias=False)
        offsets = torch.arange(self.num_codebooks)[:, None] * rows
        self.register_buffer("offsets", offsets, persistent=False)
        nn.init.normal_(self.embedding.weight, std=backbone.d_model**-0.5)
        nn.init.normal_(self.heads.weight, std=backbone.d_model**-0.5)

    @property
    def special_id(self) -> int:
        """Written where a step has no code of a codebook, and at the start."""
        return self.codebook_size

    def embed(self, tokens: Tensor) -> Tensor:
        """Sum of the embeddings of a step's ids: (B, K, P) -> (B, P, D)."""
        return self.embedding(tokens + self.offsets).sum(dim=1)

    def hidden(
        self,
        codes: Tensor,
        codes_lens: Tensor | None = None,
        conditions: Mapping[str, Condition] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run the backbone on codes (B, K, F).

        Args:
            codes: padded with any valid id behind `codes_lens`.
            codes_lens: frames of each row (B,); all F if None.
            conditions: by id; those that the model does not use are ignored.

        Returns:
            What each code is predicted from (B, K, F, D), and the mask of real frames (B, F).
        """
        if codes_lens is None:
            codes_lens = torch.full((len(codes),), codes.shape[2], device=codes.device)
        layout = self.pattern_provider.batch_layout(codes_lens, num_frames=codes.shape[2])
        tokens = layout.build(codes, self.special_id)
        routed = self.route(conditions or {})
        hidden = self.backbone(
            self.embed(tokens[:, :, :-1]),  # the last step predicts nothing
            prepend=routed.prepend,
            memory=routed.memory,
            global_cond=routed.global_cond,
        )
        return layout.align(hidden), layout.mask[:, 0]

    def forward(
        self,
        codes: Tensor,
        codes_lens: Tensor | None = None,
        conditions: Mapping[str, Condition] | None = None,
    ) -> LMOutput:
        """Logits of all codes; see `hidden` for the arguments."""
        hidden, mask = self.hidden(codes, codes_lens, conditions)
        logits = torch.einsum("bkfd,kvd->bkfv", hidden, self.head_weights())
        return LMOutput(logits, mask[:, None].expand(-1, self.num_codebooks, -1))

    def head_weights(self) -> Tensor:
        """The heads of all codebooks, (K, V, D)."""
        return self.heads.weight.view(self.num_codebooks, self.codebook_size, -1)

    def route(self, conditions: Mapping[str, Condition]) -> RoutedConditions:
        """Sort conditions by the way they take."""
        return RoutedConditions(
            memory=_in_sequence(conditions, self.cross_attention_cond_ids),
            prepend=_in_sequence(conditions, self.prepend_cond_ids),
            global_cond=side_by_side(conditions, self.global_cond_ids),
        )


def _in_sequence(conditions: Mapping[str, Condition], ids: Sequence[str]) -> Condition | None:
    """One after the other: (B, sum of S, C)."""
    if not ids:
        return None
    chosen = [conditions[name] for name in ids]
    return Condition(
        torch.cat([condition.embeds for condition in chosen], dim=1),
        torch.cat([condition.mask for condition in chosen], dim=1),
    )
