"""Generation with mdlm: all slots of a row are masked, and step by step they are filled."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

from whalesong.core.parts import Batch, NoiseSchedule
from whalesong.models.mdlm.filling import (
    NOISE_STREAMS,
    Filling,
    fill_ancestrally,
    fill_by_confidence,
)
from whalesong.models.mdlm.model import MdlmModel
from whalesong.models.mdlm.noise_schedule import require_schedule
from whalesong.modules.generation.sampling import SamplingSettings
from whalesong.textlm.generating import generating, row_noise, unwritable_ids
from whalesong.textlm.rows import plain_rows
from whalesong.textlm.tokenizers import require
from whalesong.textlm.unmasking import Unmasking

Strategy = Literal["ancestral", "uniform", "top_prob", "prob_diff"]


@dataclass(frozen=True, kw_only=True)
class FillingSettings:
    """How slots are filled.

    Attributes:
        strategy: "ancestral" undoes the noise as it came, at random; the others choose slots as
            `Unmasking` says.
        threshold: see `Unmasking`.
        num_steps: steps, besides the last one of "ancestral". More of them take more time only as
            long as they are fewer than the slots, unless the model is told the noise.
        temperature: divides the logits; 0 takes the most probable token.
        top_k: keep this many most probable tokens; 0 keeps all.
        top_p: keep the fewest most probable tokens that reach this probability; 0 keeps all.
        use_cache: leave out steps of "ancestral" that change nothing.
        history: return how each row was filled.

    Raises:
        ValueError: a value that is not allowed, or that has no use.
    """

    strategy: Strategy = "ancestral"
    threshold: float | None = None
    num_steps: int = 1000
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    use_cache: bool = True
    history: bool = False

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Strategy):
            names = "', '".join(get_args(Strategy))
            raise ValueError(f"`strategy` must be one of '{names}', but is '{self.strategy}'.")
        if self.num_steps < 1:
            raise ValueError(f"`num_steps` must be at least 1, but is {self.num_steps}.")
        if self.strategy == "ancestral" and self.threshold is not None:
            raise ValueError(
                "`threshold` must be null with strategy 'ancestral', which has no confidence, but "
                f"is {self.threshold}."
            )

    def sampling(self) -> SamplingSettings:
        """How a token is drawn."""
        return SamplingSettings(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    def unmasking(self) -> Unmasking:
        """How slots are chosen, if not ancestrally."""
        return Unmasking(strategy=self.strategy, threshold=self.threshold)


class MdlmPredictor:
    """Fills the masked slots of a batch: all of them, or the gaps of a text.

    Args:
        model: an `MdlmModel`.
        tokenizer: names the mask and what is not written.
        noise_schedule: that of training.
        strategy, threshold, num_steps, temperature, top_k, top_p, use_cache, history: see
            `FillingSettings`.
    """

    def __init__(
        self,
        model: MdlmModel,
        tokenizer: PreTrainedTokenizerBase,
        noise_schedule: NoiseSchedule,
        *,
        strategy: Strategy = "ancestral",
        threshold: float | None = None,
        num_steps: int = 1000,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 0.0,
        use_cache: bool = True,
        history: bool = False,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.noise_schedule = require_schedule(noise_schedule)
        self.settings = FillingSettings(
            strategy=strategy,
            threshold=threshold,
            num_steps=num_steps,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            use_cache=use_cache,
            history=history,
        )
        self.mask_id = require(tokenizer, "mask_token", for_what="mdlm")
        written = (tokenizer.eos_token_id, tokenizer.pad_token_id)
        self.unwritable = sorted({*unwritable_ids(tokenizer, allowed=written), self.mask_id})

    def predict(
        self, batch: Batch, *, seeds: Sequence[int] | None = None, **generation: Any
    ) -> dict[str, Any]:
        """Fill all masked slots.

        Args:
            batch: see `MdlmSeq2SeqPredCollator`.
            seeds: one for each row, which then depends on no other; None draws them.
            **generation: changes of `FillingSettings` for this call.

        Returns:
            "ids" (B, L), the tokens in the slots; with `history`, "history": for each row
            `{"step", "text"}` at the begin and after each step that changed it.

        Raises:
            TypeError: a setting that does not exist.
            ValueError: a wrong setting, or not one seed a row.
        """
        settings = replace(self.settings, **generation)
        noise = row_noise(batch, seeds, NOISE_STREAMS)
        with generating(self.model):
            filling = Filling(
                self.model,
                batch,
                noise,
                mask_id=self.mask_id,
                unwritable=self.unwritable,
                keep_changes=settings.history,
            )
            self._fill(filling, settings)
            preds: dict[str, Any] = {"ids": filling.slots()}
        if settings.history:
            preds["history"] = self._history(filling)
        return preds

    def to_dict(self, batch: Batch, preds: dict[str, Any]) -> list[dict[str, Any]]:
        """One plain dictionary for each row; see `plain_rows`."""
        return plain_rows(self.tokenizer, batch, preds)

    def _fill(self, filling: Filling, settings: FillingSettings) -> None:
        shared = {"num_steps": settings.num_steps, "sampling": settings.sampling()}
        if settings.strategy == "ancestral":
            use_cache = settings.use_cache and not self.model.time_conditioning
            fill_ancestrally(filling, self.noise_schedule, use_cache=use_cache, **shared)
        else:
            unmasking = settings.unmasking()
            fill_by_confidence(filling, self.noise_schedule, unmasking=unmasking, **shared)

    def _history(self, filling: Filling) -> list[list[dict[str, Any]]]:
        rows: list[list[dict[str, Any]]] = [[] for _ in filling.ids]
        for steps, slots in filling.changes:
            for row, step, ids in zip(rows, steps.tolist(), slots.tolist(), strict=True):
                if step >= 0:
                    row.append({"step": step, "text": self._with_masks(ids)})
        return rows

    def _with_masks(self, ids: Sequence[int]) -> str:
        """The text in the slots of a row; masks show, other special tokens do not."""
        hidden = set(self.tokenizer.all_special_ids) - {self.mask_id}
        return self.tokenizer.decode([token for token in ids if token not in hidden])
