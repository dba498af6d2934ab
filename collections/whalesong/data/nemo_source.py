"""Data types that NeMo's own parsers read, adapted to examples in one fixed order."""

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

from lhotse.cut import Cut

from whalesong.core.errors import ConfigError, DataError
from whalesong.core.seeding import mix, seeded
from whalesong.data.config import DatasetConfig
from whalesong.data.conversation import Example, conversation_from_nemo
from whalesong.data.faults import Faults, cause
from whalesong.data.input_schema import NemoItem
from whalesong.data.manifests import check_cut
from whalesong.data.sources import Shard


def nemo_parsed_shards(item: NemoItem, *, path: str, config: DatasetConfig) -> list[Shard]:
    """One shard with all examples of the item."""
    keys = item.model_dump(exclude={"weight", "options", "tags"}, exclude_none=True)
    inherited = {
        "audio_locator_tag": config.audio_locator_tag,
        "token_equivalent_duration": config.token_equivalent_duration,
        "text_field": config.text_field,
        "lang_field": config.lang_field,
        "sample_rate": config.sample_rate,
    }
    fixed = {"shuffle": False, "shard_seed": 0, "force_finite": True, "metadata_only": False}
    tags = {"tags": dict(item.tags)} if item.tags else {}
    options = {**inherited, **keys, **tags, **item.options, **fixed}
    return [Shard(path, partial(read_parsed, options, path), has_lines=False)]


def read_parsed(
    options: dict[str, Any], path: str, rng: random.Random, faults: Faults
) -> Iterator[Example]:
    """Yield what NeMo's parser yields, with python, numpy and torch seeded for each example."""
    from nemo.collections.common.data.lhotse.cutset import get_parser_fn
    from omegaconf import OmegaConf

    kind, seed, number = options["type"], rng.getrandbits(63), 0
    try:
        cuts, _ = get_parser_fn(kind)(OmegaConf.create(options))
        examples = iter(cuts)
    except Exception as error:  # whatever the parser meets, it is this item that it meets it in
        raise ConfigError(f"`{path}`: NeMo cannot read this item ({cause(error)}).") from error
    while True:
        try:
            with seeded(mix(seed, number)):
                example = next(examples, None)
            if example is None:
                return
            yield _adapt(example)
        except DataError as error:
            faults.report(f"`{path}`, example {number}: {error}.")
        except Exception as error:
            # A generator that raised is at its end.
            faults.report(f"`{path}`: NeMo stops at example {number} ({cause(error)}).")
            return
        number += 1


def _adapt(example: Any) -> Example:
    if isinstance(example, Cut):
        check_cut(example)
        return example
    if hasattr(example, "turns"):
        return conversation_from_nemo(example)
    raise DataError(f"is a {type(example).__name__}, not a cut or a conversation")
