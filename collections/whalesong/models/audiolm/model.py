"""`AudioLM`: the first quantizers autoregressively, the others all at once, behind a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from whalesong.models.audiolm.ar import ARDecoder, Score
from whalesong.models.audiolm.arrangement import Arrangement, join_left, with_target
from whalesong.models.audiolm.generation import CodesGenerator
from whalesong.models.audiolm.nar import NARDecoder
from whalesong.models.audiolm.request import CodesRequest, guided
from whalesong.modules.evaluating import evaluating
from whalesong.modules.generation.packed_linear import WeightDtype
from whalesong.modules.generation.sampling import SamplingSettings
from whalesong.modules.transformer import Norm
from whalesong.modules.transformer_block import Activation
from whalesong.sound.rows import check_rows, row_seeds


@dataclass
class AudioLMOutput:
    """Logits that are aligned with their labels: no shift is left to a loss."""

    ar: Score
    """Of the first quantizers and the end; logits (M, V + 1)."""
    nar: list[Score]
    """Of each stage; logits (M, V)."""


class AudioLM(nn.Module):
    """Language model on the codes of an audio codec, conditioned on the codes of a prompt.

    VALL-E's two stages (arXiv 2301.02111) with audio in the place of text; quantizers are counted
    from 0. The two halves have no parameter in common.

    Args:
        d_model: D.
        nhead: H.
        num_layers: layers of each half.
        num_quantizers: K.
        codebook_size: V, of all quantizers or of each.
        ff_mult: inner width of the feed-forward over D.
        activation: of the feed-forward.
        norm: kind of all norms.
        dropout: of inputs and branches.
        positions: "rope", or the sinusoidal ones of VALL-E.
        position_mode: positions run on from prompt to target, or restart at 0 there.
        prompt_attention: whether the prompt sees itself in both directions.
        nar: other values of `d_model`, `nhead`, `num_layers` or `dropout` for the second half.
        ar_quantizers: k, quantizers that are generated autoregressively; K leaves no second half.
        ar_pattern: k codes of a frame in one step, or each one step behind the one before.
        ar_group: G, frames of one step (VALL-E 2, arXiv 2406.05370).
        predict_eos: the end of a recording can be predicted.
        condition_dim: width of a global condition.

    Raises:
        ValueError: sizes that do not fit together.
    """

    def __init__(
        self,
        d_model: int = 1024,
        nhead: int = 16,
        num_layers: int = 12,
        num_quantizers: int = 4,
        *,
        codebook_size: int | Sequence[int] = 2048,
        ff_mult: float = 4,
        activation: Activation = "gelu",
        norm: Norm = "layer_norm",
        dropout: float = 0.1,
        positions: Literal["rope", "sinusoidal"] = "rope",
        position_mode: Literal["continuous", "restart"] = "continuous",
        prompt_attention: Literal["bidirectional", "causal"] = "bidirectional",
        nar: Mapping[str, Any] | None = None,
        ar_quantizers: int = 1,
        ar_pattern: Literal["parallel", "delayed"] = "parallel",
        ar_group: int = 1,
        predict_eos: bool = True,
        condition_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= ar_quantizers <= num_quantizers:
            raise ValueError(f"`ar_quantizers` must be from 1 to `num_quantizers` "
                             f"({num_quantizers}), but is {ar_quantizers}.")  # fmt: skip
        self.num_quantizers, self.ar_quantizers = num_quantizers, ar_quantizers
        self.ar_group = ar_group
        self.codebook_sizes = _sizes(codebook_size, num_quantizers)
        sizes = {"d_model": d_model, "nhead": nhead, "num_layers": num_layers, "dropout": dropout}
        shared = {"ff_mult": ff_mult, "activation": activation, "norm": norm}
        common: dict[str, Any] = {
            "num_quantizers": num_quantizers,
            "codebook_sizes": self.codebook_sizes,
            "restart_positions": position_mode == "restart",
            "causal_prompt": prompt_attention == "causal",
        }
        self.ar = ARDecoder(
            **common,
            ar_quantizers=ar_quantizers,
            ar_pattern=ar_pattern,
            ar_group=ar_group,
            predict_eos=predict_eos,
            transformer=_transformer(positions, **sizes, **shared, condition_dim=condition_dim),
        )
        self.nar: NARDecoder | None = None
        if ar_quantizers < num_quantizers:
            self.nar = NARDecoder(
                **common,
                first_stage=ar_quantizers,
                condition_dim=condition_dim,
                transformer=_transformer(positions, **{**sizes, **(nar or {})}, **shared),
            )

    @property
    def codebook_size(self) -> int:
        """V, the largest codebook; as an id of the AR's input it says that nothing stands there."""
        return max(self.codebook_sizes)

    @property
    def ar_prompt_embeddings(self) -> nn.ModuleList:
        """The tables of the prompt's codes in the AR half, one for each quantizer (and frame)."""
        return self.ar.prompt_embeddings

    def forward(
        self,
        x: Tensor,
        x_lens: Tensor,
        y: Tensor,
        y_lens: Tensor,
        *,
        nar_stage: int | None = None,
        closes: Tensor | None = None,
        condition: Tensor | None = None,
    ) -> AudioLMOutput:
        """Logits of a target behind a prompt.

        Args:
            x: codes of the prompt, (B, T, K).
            x_lens: its frames (B,).
            y: codes of the target, (B, T, K).
            y_lens: its frames (B,).
            nar_stage: the only stage that is wanted; all if None.
            closes: (B,) where the recording ends with the target.
            condition: (B, G).
        """
        arrangement = self.arrange(x, x_lens, y, y_lens, closes=closes)
        nar = [] if self.nar is None else list(self.nar.stages)
        stages = nar if nar_stage is None else [nar_stage]
        return AudioLMOutput(
            self.ar.score(arrangement, condition),
            [self.nar.score(arrangement, stage, condition) for stage in stages],
        )

    def arrange(
        self,
        x: Tensor,
        x_lens: Tensor,
        y: Tensor,
        y_lens: Tensor,
        *,
        closes: Tensor | None = None,
    ) -> Arrangement:
        """Bring a prompt x (B, T, K) and a target y (B, T, K) close to each other.

        Raises:
            ValueError: another number of quantizers, or codes out of range.
        """
        self.check_codes(x.transpose(1, 2), x_lens, name="x")
        self.check_codes(y.transpose(1, 2), y_lens, name="y")
        codes = join_left(x.transpose(1, 2), x_lens, y.transpose(1, 2), y_lens)
        plain = with_target(codes, x_lens + y_lens, x_lens)
        codes = codes.masked_fill(~plain.mask[:, None], 0)
        closes = plain.closes if closes is None else closes
        return Arrangement(codes, plain.lens, x_lens, plain.ends, plain.scored_mask, closes)

    def inference(
        self,
        x: Tensor,
        x_lens: Tensor,
        max_new_tokens: int = 500,
        temperature: float = 1.0,
        *,
        top_k: int = 0,
        top_p: float = 0.0,
        min_p: float = 0.0,
        repetition_window: int = 0,
        repetition_threshold: float = 0.1,
        nar_temperature: float = 0.0,
        seeds: int | Sequence[int] | None = None,
        min_new_tokens: int = 0,
        stop_on_eos: bool = True,
        condition: Tensor | None = None,
        guidance_scale: float = 1.0,
        weight_dtype: WeightDtype | None = None,
        return_prompt: bool = False,
        return_lens: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Go on from prompts; each row is what it would be alone.

        Args:
            x: codes of the prompts, (B, T, K); T may be 0.
            x_lens: their frames (B,).
            max_new_tokens: new frames at most.
            temperature: of the first half; 0 takes the most probable codes.
            top_k: see `SamplingSettings`, as the next four; 0 for none.
            top_p: as `top_k`.
            min_p: as `top_k`.
            repetition_window: as `top_k`.
            repetition_threshold: as `top_k`.
            nar_temperature: of the second half; 0 takes the most probable codes.
            seeds: one for each row, or that of the first row, which counts on; random ones if None.
            min_new_tokens: new frames before which no row ends.
            stop_on_eos: rows end where the model ends the recording.
            condition: (B, G).
            guidance_scale: strength of the condition; 1 is no guidance.
            weight_dtype: precision of the first half's weights; None keeps them.
            return_prompt: give prompt and new frames.
            return_lens: give the frames of each row, too.

        Returns:
            New codes (B, T', K), 0 behind the end of a row; with `return_lens` also (B,).

        Raises:
            ValueError: codes that the model cannot have, or a wrong value.
        """
        if max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be at least 1, but is {max_new_tokens}.")
        self.check_codes(x.transpose(1, 2), x_lens, name="x")
        generator = CodesGenerator(
            self,
            sampling=SamplingSettings(
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                repetition_window=repetition_window,
                repetition_threshold=repetition_threshold,
            ),
            nar_temperature=nar_temperature,
            min_frames=min_new_tokens,
            stop_on_eos=stop_on_eos,
            weight_dtype=weight_dtype,
        )
        seeds = row_seeds(seeds, len(x))
        check_rows(len(x), seeds=seeds)
        left, left_lens = x.transpose(1, 2), x_lens.to(x.device)
        nothing = None if condition is None else torch.zeros_like(condition)
        request = CodesRequest.onward(
            left,
            left_lens,
            max_frames=torch.full_like(left_lens, max_new_tokens),
            seeds=seeds,
            variants=guided(condition, nothing, guidance_scale),
        )
        with evaluating(self):
            made = generator.generate(request)
        codes, lens = made.codes, made.lens
        if return_prompt:
            codes, lens = join_left(left, left_lens, codes, lens), left_lens + lens
        codes = codes.transpose(1, 2)
        return (codes, lens) if return_lens else codes

    def check_codes(self, codes: Tensor, lens: Tensor, *, name: str) -> None:
        """Refuse codes (B, K, F) that the model cannot have.

        Raises:
            ValueError: naming what is wrong and in which row.
        """
        if codes.dim() != 3 or codes.shape[1] != self.num_quantizers:
            raise ValueError(
                f"`{name}` must have {self.num_quantizers} quantizers, but has {codes.shape[1]}."
            )
        if len(lens) != len(codes) or (len(lens) and int(lens.max()) > codes.shape[2]):
            raise ValueError(f"the lengths of `{name}` must be at most its {codes.shape[2]} frames "
                             f"in each of {len(codes)} rows, but are {lens.tolist()}.")  # fmt: skip
        real = torch.arange(codes.shape[2], device=codes.device) < lens[:, None].to(codes.device)
        sizes = torch.tensor(self.codebook_sizes, device=codes.device)[:, None]
        wrong = ((codes < 0) | (codes >= sizes)) & real[:, None]
        if wrong.any():
            row, quantizer, frame = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"`{name}` must hold codes from 0 to {self.codebook_sizes[quantizer] - 1} for "
                f"quantizer {quantizer}, but row {row} has {int(codes[row, quantizer, frame])} at "
                f"frame {frame}."
            )


def _sizes(codebook_size: int | Sequence[int], num_quantizers: int) -> list[int]:
    sizes = [codebook_size] * num_quantizers if isinstance(codebook_size, int) else codebook_size
    if len(sizes) != num_quantizers:
        raise ValueError(f"`codebook_size` must be one number, or one for each of {num_quantizers} "
                         f"quantizers, but has {len(sizes)}.")  # fmt: skip
    return list(sizes)


def _transformer(
    positions: str, *, d_model: int, nhead: int, num_layers: int, **others: Any
) -> dict[str, Any]:
    """Arguments of `Transformer`."""
    if d_model % nhead:
        raise ValueError(f"`nhead` must divide `d_model` ({d_model}), but is {nhead}.")
    rotary = {"rotary_dim": d_model // nhead, "positions": "none"}
    return {
        "d_model": d_model,
        "num_heads": nhead,
        "num_layers": num_layers,
        **(rotary if positions == "rope" else {"positions": "sinusoidal"}),
        **others,
    }
