"""Which examples are kept; every one that is not is counted under its reason."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from lhotse.cut import Cut

from whalesong.data.config import DatasetConfig
from whalesong.data.conversation import Conversation, Example

MeasureTokens = Callable[[Example], int]
"""Length of an example in tokens, audio included; given by the model family."""


class Filters:
    """The filters of a dataset, with totals of what they left out."""

    def __init__(self, config: DatasetConfig, measure_tokens: MeasureTokens | None) -> None:
        """The token filters need `measure_tokens`."""
        self.config = config
        self.measure_tokens = measure_tokens
        self.dropped: Counter[str] = Counter()
        self._uses_tokens = any(
            getattr(config, key) is not None
            for key in ("min_tokens", "max_tokens", "min_tps", "max_tps")
        )

    def keeps(self, example: Example) -> bool:
        """Whether the example passes all filters."""
        reason = self._reason(example)
        if reason is not None:
            self.dropped[reason] += 1
        return reason is None

    def _reason(self, example: Example) -> str | None:
        config, seconds = self.config, example.duration
        if isinstance(example, Cut) or (isinstance(example, Conversation) and example.audios):
            if config.min_duration is not None and seconds < config.min_duration:
                return f"shorter than min_duration ({config.min_duration} s)"
            if config.max_duration is not None and seconds > config.max_duration:
                return f"longer than max_duration ({config.max_duration} s)"
        return self._metadata_reason(example) or (
            self._token_reason(example, seconds) if self._uses_tokens else None
        )

    def _metadata_reason(self, example: Example) -> str | None:
        config, custom = self.config, getattr(example, "custom", None) or {}
        if custom.get("validation_status", config.keep) != config.keep:
            return f"validation_status is not {config.keep}"
        if config.max_cer is not None and _number(custom, "cer", 0.0) > config.max_cer:
            return f"cer above max_cer ({config.max_cer})"
        least = config.min_context_speaker_similarity
        if least is not None and _number(custom, "context_speaker_similarity", 1.0) < least:
            return f"context_speaker_similarity below {least}"
        return None

    def _token_reason(self, example: Example, seconds: float) -> str | None:
        config, tokens = self.config, self.measure_tokens(example)
        if config.min_tokens is not None and tokens < config.min_tokens:
            return f"fewer tokens than min_tokens ({config.min_tokens})"
        if config.max_tokens is not None and tokens > config.max_tokens:
            return f"more tokens than max_tokens ({config.max_tokens})"
        rate = tokens / seconds if seconds > 0 else None
        if rate is not None and config.min_tps is not None and rate < config.min_tps:
            return f"fewer tokens a second than min_tps ({config.min_tps})"
        if rate is not None and config.max_tps is not None and rate > config.max_tps:
            return f"more tokens a second than max_tps ({config.max_tps})"
        return None

    def summary(self) -> str:
        """The totals in one line."""
        return ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))


def _number(custom: dict[str, Any], key: str, default: float) -> float:
    value = custom.get(key, default)
    return float(value) if isinstance(value, int | float) else default
