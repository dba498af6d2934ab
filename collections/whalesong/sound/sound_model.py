"""`SoundModelPT`: what models of codes have in common, whatever their language model is."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from whalesong.core.language_model import LanguageModelPT
from whalesong.modules.conditioning.section import ConditionerSection
from whalesong.sound.codec_info import describe_codec
from whalesong.sound.conditions import RECORDING_TYPES, TEXT_TYPES, ids_of


class SoundModelPT(LanguageModelPT):
    """A model with a codec (`model.pretransform`), conditions, and samples in the logs.

    Attributes:
        conditions: the conditioners that are used; set by `build_parts`.
        samples: `model.samples`, with `every_n_validations`; set by `build_parts`.
    """

    conditions: Sequence[ConditionerSection] = ()
    samples: Any = None
    _num_validations = 0

    @abstractmethod
    def log_samples(self, settings: Any) -> None:
        """Generate what `model.samples` names, with the same seed as ever, and log it."""

    @property
    def sample_rate(self) -> int:
        """Samples per second of what goes in and comes out."""
        return self.model.sample_rate

    @property
    def condition_ids(self) -> list[str]:
        """Ids of all conditions."""
        return [item.id for item in self.conditions]

    @property
    def text_ids(self) -> list[str]:
        """Ids of the conditions that are texts."""
        return ids_of(self.conditions, TEXT_TYPES)

    @property
    def recording_ids(self) -> list[str]:
        """Ids of the conditions that are recordings."""
        return ids_of(self.conditions, RECORDING_TYPES)

    def on_validation_epoch_end(self) -> None:
        """Log the values, and at times samples."""
        super().on_validation_epoch_end()
        if self.samples is None or self.trainer.sanity_checking or self._is_sharded:
            return
        self._num_validations += 1
        if self._num_validations % self.samples.every_n_validations == 0 and self.global_rank == 0:
            self.log_samples(self.samples)

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Load the weights; from then on codes must be those of the codec that came with them."""
        result = super().load_state_dict(*arguments, **options)
        codec = describe_codec(self.model.pretransform)
        for collator in (self.parts.train_collator, self.parts.validation_collator):
            collator.codec = codec
        return result
