"""How many examples the splits of a corpus have."""

from whalesong.core.errors import ConfigError
from whalesong.corpora.grammar import Split


def split_counts(
    *, num_train: int, num_validation: int, num_test: int, shard_size: int
) -> dict[Split, int]:
    """The counts by split, checked together with the size of a shard.

    Raises:
        ConfigError: one of them is below 1.
    """
    counts: dict[Split, int] = {"train": num_train, "validation": num_validation, "test": num_test}
    for name, count in [*((f"num_{k}", v) for k, v in counts.items()), ("shard_size", shard_size)]:
        if count < 1:
            raise ConfigError(f"`{name}` must be at least 1, but is {count} instead.")
    return counts
