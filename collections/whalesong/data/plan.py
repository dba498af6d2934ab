"""The batch plan: which examples form batch k, decided in the main process from metadata.

It is a pure function of the configuration, the seed and the epoch. It knows nothing of ranks and
workers: rank r of W takes the batches k * W + r, and any worker may load any batch.
"""

import logging
import random
import secrets
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice

from whalesong.core.errors import ConfigError, DataError
from whalesong.core.seeding import mix
from whalesong.data.batching import Batcher, estimate_bins, length_measure, make_limits
from whalesong.data.config import DatasetConfig
from whalesong.data.conversation import Example
from whalesong.data.faults import Faults
from whalesong.data.filters import Filters, MeasureTokens
from whalesong.data.input_cfg import resolve_sources
from whalesong.data.sources import Source

logger = logging.getLogger(__name__)


class BatchPlan:
    """The batches of a dataset, epoch by epoch."""

    def __init__(
        self,
        sources: Sequence[Source],
        config: DatasetConfig,
        *,
        path: str = "data",
        shuffle: bool = True,
        measure_tokens: MeasureTokens | None = None,
        faults: Faults | None = None,
    ) -> None:
        """Check that batches can be made of the sources.

        Args:
            path: where `config` stands in the YAML, for messages.
            shuffle: taken where the configuration does not say.
            measure_tokens: needed by limits and filters in tokens.
            faults: takes what cannot be read; that of the sources.

        Raises:
            ConfigError: nothing limits a batch, or tokens cannot be measured.
        """
        self.sources = list(sources)
        self.config = config
        self.path = path
        self.shuffle = shuffle if config.shuffle is None else config.shuffle
        self.measure_tokens = measure_tokens
        self.faults = faults or Faults()
        self.filters = Filters(config, measure_tokens)
        self._reported = ""
        self.seed = config.seed
        self.order_seed = _order_seed(config)
        self._check()

    def batches(self, epoch: int) -> Iterator[list[Example]]:
        """Yield the batches of an epoch.

        Raises:
            DataError: the filters leave nothing, or a file cannot be used (with `raise`).
        """
        rng = random.Random(mix(self.order_seed, epoch, "batches"))
        batcher = self._batcher
        self.filters.dropped.clear()
        yield from batcher.batches(self.examples(epoch), rng)
        if (summary := self.filters.summary()) != self._reported:
            self._reported = summary
            logger.warning("`%s`: filtered out in epoch %d: %s.", self.path, epoch, summary)

    def examples(self, epoch: int) -> Iterator[Example]:
        """Yield the examples of an epoch in the order of their batches without bucketing.

        Without weights every example comes exactly once. With weights each source repeats and the
        draws follow the weights; the epoch ends when every source has been seen once as a whole.
        """
        if any(source.weight is not None for source in self.sources) and len(self.sources) > 1:
            yield from self._weighted(epoch)
        else:
            yield from self._once(epoch)

    @cached_property
    def _batcher(self) -> Batcher:
        config = self.config
        measure = length_measure(config, self.measure_tokens)
        if not config.use_bucketing:
            return Batcher(measure, make_limits(config, 1), drop_last=config.drop_last)
        bins = tuple(config.bucket_duration_bins or ())
        if not bins:
            some = islice(self.examples(0), config.num_cuts_for_bins_estimate)
            bins = estimate_bins(map(measure, some), config.num_buckets)
            logger.info("%s: bucket_duration_bins: %s", self.path, [round(b, 3) for b in bins])
        limits = make_limits(config, len(bins) + 1)
        return Batcher(measure, limits, bins=bins, drop_last=config.drop_last)

    def _once(self, epoch: int) -> Iterator[Example]:
        """Every example once; several sources are interleaved in proportion to their sizes."""
        streams = [self._pass(index, epoch, 0) for index in range(len(self.sources))]
        kept = 0
        for example in self._interleaved(streams, epoch):
            if self._keeps(example):
                kept += 1
                yield example
        if not kept:
            raise self._nothing_left(f"`{self.path}`")

    def _interleaved(self, streams: list[Iterator[Example]], epoch: int) -> Iterator[Example]:
        if len(streams) == 1 or not self.shuffle:
            for stream in streams:
                yield from stream
            return
        rng = random.Random(mix(self.order_seed, epoch, "interleave"))
        left = [len(source) for source in self.sources]
        alive = list(range(len(streams)))
        while alive:
            # A file that cannot be read to its end has fewer examples than lines.
            index = rng.choices(alive, [max(left[i], 1) for i in alive])[0]
            left[index] -= 1
            try:
                yield next(streams[index])
            except StopIteration:
                alive.remove(index)

    def _weighted(self, epoch: int) -> Iterator[Example]:
        rng = random.Random(mix(self.order_seed, epoch, "weights"))
        indices = range(len(self.sources))
        weights = [source.weight for source in self.sources]
        passes = [0] * len(self.sources)
        streams = [self._kept_pass(index, epoch, 0) for index in indices]
        while True:
            index = rng.choices(indices, weights)[0]
            example = next(streams[index], None)
            if example is None:
                passes[index] += 1
                if all(passes):
                    return
                streams[index] = self._kept_pass(index, epoch, passes[index])
                example = next(streams[index])
            yield example

    def _kept_pass(self, index: int, epoch: int, number: int) -> Iterator[Example]:
        """The examples of one pass over a source that the filters keep; never none."""
        kept = 0
        for example in self._pass(index, epoch, number):
            if self._keeps(example):
                kept += 1
                yield example
        if not kept:
            raise self._nothing_left(self.sources[index].name)

    def _pass(self, index: int, epoch: int, number: int) -> Iterator[Example]:
        config = self.config
        size = config.bucket_buffer_size if config.use_bucketing else config.shuffle_buffer_size
        seed = mix(self.order_seed, epoch, index, number)
        return self.sources[index].iterate(seed, shuffle=self.shuffle, buffer_size=size)

    def _keeps(self, example: Example) -> bool:
        if not self.filters.keeps(example):
            return False
        bins, sizes = self.config.bucket_duration_bins, self.config.bucket_batch_size
        if self.config.use_bucketing and sizes is not None and len(sizes) == len(bins):
            if length_measure(self.config, self.measure_tokens)(example) > bins[-1]:
                self.filters.dropped[f"longer than the last bucket ({bins[-1]})"] += 1
                return False
        return True

    def _nothing_left(self, name: str) -> DataError:
        reasons = [self.filters.explanation()] if self.filters.dropped else []
        reasons += [f"{self.faults.total} unreadable"] if self.faults.total else []
        return DataError(f"{name}: no example is left: {'; '.join(reasons) or 'there are none'}.")

    def _check(self) -> None:
        config, path = self.config, self.path
        by_bucket = config.use_bucketing and config.bucket_batch_size is not None
        if not (config.batch_size or config.batch_duration or config.batch_tokens or by_bucket):
            raise ConfigError(
                f"`{path}` must limit its batches: set `batch_size`, `batch_duration`, "
                "`batch_tokens`, or `use_bucketing` with `bucket_batch_size`."
            )
        in_tokens = config.batch_tokens or config.use_multimodal_sampling
        token_keys = [
            key
            for key in ("min_tokens", "max_tokens", "min_tps", "max_tps", "batch_tokens")
            if getattr(config, key) is not None
        ]
        if (in_tokens or token_keys) and self.measure_tokens is None:
            key = token_keys[0] if token_keys else "use_multimodal_sampling"
            raise ConfigError(f"`{path}.{key}` needs lengths in tokens, which this model has not.")


def _order_seed(config: DatasetConfig) -> int:
    if config.shard_seed == "trng":
        return secrets.randbits(63)
    return (
        config.seed if config.shard_seed == "randomized" else mix(config.shard_seed, "shard_seed")
    )


def make_plan(
    config: DatasetConfig,
    *,
    path: str,
    shuffle: bool = True,
    on_bad_cut: str = "raise",
    default_context: str | None = None,
    measure_tokens: MeasureTokens | None = None,
    quiet: bool = False,
) -> BatchPlan:
    """The plan of a dataset section; `path` is where the section stands in the YAML.

    With `quiet` nothing that is left out is logged.
    """
    faults = Faults(on_bad_cut, quiet=quiet)
    sources = resolve_sources(config, path=path, faults=faults, default_context=default_context)
    return BatchPlan(
        sources, config, path=path, shuffle=shuffle, measure_tokens=measure_tokens, faults=faults
    )
