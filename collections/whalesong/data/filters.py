"""Which examples are kept; every one that is not is counted under its reason."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from lhotse.cut import Cut

from whalesong.data.config import DatasetConfig
from whalesong.data.conversation import Conversation, Example

MeasureTokens = Callable[[Example], int]
"""Length of an example in tokens, audio included; given by the model family."""

Reason = tuple[str, float | None, str]
"""The rule that an example breaks, what it has instead, and its unit."""


class Filters:
    """The filters of a dataset, with totals of what they left out."""

    def __init__(self, config: DatasetConfig, measure_tokens: MeasureTokens | None) -> None:
        """The token filters need `measure_tokens`."""
        self.config = config
        self.measure_tokens = measure_tokens
        self.dropped: Counter[str] = Counter()
        self._ranges: dict[str, tuple[float, float, str]] = {}
        self._uses_tokens = any(
            getattr(config, key) is not None
            for key in ("min_tokens", "max_tokens", "min_tps", "max_tps")
        )

    def keeps(self, example: Example) -> bool:
        """Whether the example passes all filters."""
        reason = self._reason(example)
        if reason is not None:
            self._count(*reason)
        return reason is None

    def _count(self, rule: str, value: float | None, unit: str) -> None:
        self.dropped[rule] += 1
        if value is not None:
            least, most, _ = self._ranges.get(rule, (value, value, unit))
            self._ranges[rule] = (min(least, value), max(most, value), unit)

    def _reason(self, example: Example) -> Reason | None:
        config, seconds = self.config, example.duration
        if isinstance(example, Cut) or (isinstance(example, Conversation) and example.audios):
            if config.min_duration is not None and seconds < config.min_duration:
                return f"shorter than min_duration ({config.min_duration} s)", seconds, "s"
            if config.max_duration is not None and seconds > config.max_duration:
                return f"longer than max_duration ({config.max_duration} s)", seconds, "s"
        return self._metadata_reason(example) or (
            self._token_reason(example, seconds) if self._uses_tokens else None
        )

    def _metadata_reason(self, example: Example) -> Reason | None:
        config, custom = self.config, getattr(example, "custom", None) or {}
        if custom.get("validation_status", config.keep) != config.keep:
            return f"validation_status is not {config.keep}", None, ""
        if config.max_cer is not None and (cer := _number(custom, "cer", 0.0)) > config.max_cer:
            return f"cer above max_cer ({config.max_cer})", cer, ""
        least = config.min_context_speaker_similarity
        similarity = _number(custom, "context_speaker_similarity", 1.0)
        if least is not None and similarity < least:
            return f"context_speaker_similarity below {least}", similarity, ""
        return None

    def _token_reason(self, example: Example, seconds: float) -> Reason | None:
        config, tokens = self.config, self.measure_tokens(example)
        if config.min_tokens is not None and tokens < config.min_tokens:
            return f"fewer tokens than min_tokens ({config.min_tokens})", tokens, "tokens"
        if config.max_tokens is not None and tokens > config.max_tokens:
            return f"more tokens than max_tokens ({config.max_tokens})", tokens, "tokens"
        rate = tokens / seconds if seconds > 0 else None
        if rate is not None and config.min_tps is not None and rate < config.min_tps:
            return f"fewer tokens a second than min_tps ({config.min_tps})", rate, "tokens/s"
        if rate is not None and config.max_tps is not None and rate > config.max_tps:
            return f"more tokens a second than max_tps ({config.max_tps})", rate, "tokens/s"
        return None

    def summary(self) -> str:
        """The totals in one line."""
        return ", ".join(f"{count} {rule}" for rule, count in sorted(self.dropped.items()))

    def explanation(self) -> str:
        """The totals in one line, with what the examples have that were left out."""
        return ", ".join(
            f"{count} {rule}{self._range_of(rule)}" for rule, count in sorted(self.dropped.items())
        )

    def _range_of(self, rule: str) -> str:
        if rule not in self._ranges:
            return ""
        least, most, unit = self._ranges[rule]
        values = f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"
        return f", which have {values} {unit}".rstrip()


def _number(custom: dict[str, Any], key: str, default: float) -> float:
    value = custom.get(key, default)
    return float(value) if isinstance(value, int | float) else default
