"""`input_cfg` -> sources: which files, in which shares, with which attributes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lhotse.cut import Cut

from whalesong.core.errors import ConfigError, DataError
from whalesong.core.schema import validate
from whalesong.data.config import DatasetConfig
from whalesong.data.conversation import Example, as_conversation, with_tags
from whalesong.data.conversation_source import conversation_shards, sft_shards, share_gpt_shards
from whalesong.data.faults import Faults, cause
from whalesong.data.generated_source import generated_shards
from whalesong.data.hf_dataset_source import hf_dataset_shards
from whalesong.data.input_schema import (
    CutsAsConversationItem,
    CutsInput,
    CutsItem,
    GeneratedItem,
    GroupItem,
    HfDatasetItem,
    InputItem,
    Item,
    MultimodalConversationItem,
    NemoItem,
    SftItem,
    ShareGptItem,
    TextFieldsItem,
    TextItem,
    TextPairItem,
    TextPairsItem,
)
from whalesong.data.manifest_source import cuts_shards, nemo_shards
from whalesong.data.nemo_source import nemo_parsed_shards
from whalesong.data.shar_source import shar_shards
from whalesong.data.sources import Shard, Source
from whalesong.data.text_example import TextFields
from whalesong.data.text_pairs_source import text_pairs_shards
from whalesong.data.text_source import pair_shards, text_shards


@dataclass(frozen=True)
class Scope:
    """What an item inherits from the dataset and from the groups around it."""

    path: str
    config: DatasetConfig
    faults: Faults
    default_context: str | None
    weight: float | None = None
    tags: Mapping[str, Any] | None = None
    temperatures: tuple[float, ...] = ()

    def value(self, item: InputItem, key: str) -> Any:
        """The item's own value, or that of the dataset."""
        own = getattr(item, key)
        return getattr(self.config, key) if own is None else own


def resolve_sources(
    config: DatasetConfig, *, path: str, faults: Faults, default_context: str | None = None
) -> list[Source]:
    """Find the data of a dataset.

    Args:
        path: where `config` stands in the YAML, for messages.
        default_context: what conversations made of cuts are asked with when the cuts bring nothing.

    Raises:
        ConfigError: no input, several, or weights at some items of a list only.
        DataError: a folder or file is missing or empty.
    """
    if len(config.input_keys) != 1:
        given = " and ".join(f"`{key}`" for key in config.input_keys) or "none"
        raise ConfigError(
            f"`{path}` must have exactly one of `input_cfg`, `shar_path`, `cuts_path` and "
            f"`manifest_filepath`, but has {given}."
        )
    scope = Scope(path, config, faults, default_context)
    if config.input_cfg is None:
        return list(_item_sources(_short_form(config, path), scope))
    temperature = config.reweight_temperature
    if isinstance(temperature, int | float):
        temperature = [temperature] * _depth(config.input_cfg, path)
    scope = replace(scope, temperatures=tuple(temperature or ()), path=f"{path}.input_cfg")
    sources = list(_list_sources(config.input_cfg, scope))
    if len({source.weight is None for source in sources}) > 1:
        raise ConfigError(f"`{scope.path}` must give a `weight` to every item, or to none.")
    return sources


def _short_form(config: DatasetConfig, path: str) -> CutsItem:
    """The item that `shar_path`, `cuts_path` or `manifest_filepath` of a dataset stand for."""
    keys = ("shar_path", "cuts_path", "manifest_filepath", "tarred_audio_filepaths")
    given = {key: value for key in keys if (value := getattr(config, key)) is not None}
    skip = config.skip_missing_manifest_entries
    return validate(
        CutsItem, {"type": "lhotse", "skip_missing_manifest_entries": skip, **given}, path=path
    )


def _load_items(items: Sequence[Item] | str, path: str) -> tuple[Sequence[Item], str]:
    """The items of a list or of a YAML file, and the path that messages begin with."""
    if not isinstance(items, str):
        if not items:
            raise ConfigError(f"`{path}` must list at least one item, but is empty.")
        return items, path
    from omegaconf import OmegaConf

    try:
        document = OmegaConf.load(items)
    except OSError as error:
        raise ConfigError(f"`{path}`: cannot read {items} ({error.strerror}).") from error
    except Exception as error:  # YAML errors have many lines; the first says enough
        raise ConfigError(f"`{path}`: {items} is not YAML ({cause(error)}).") from error
    return _load_items(validate(list[Item], document, path=items), items)


def _depth(items: Sequence[Item] | str, path: str) -> int:
    loaded, path = _load_items(items, path)
    groups = (item for item in loaded if isinstance(item, GroupItem))
    return 1 + max((_depth(group.input_cfg, path) for group in groups), default=0)


def _list_sources(items: Sequence[Item] | str, scope: Scope) -> Iterator[Source]:
    items, path = _load_items(items, scope.path)
    weighted = [item.weight is not None for item in items]
    if any(weighted) != all(weighted):
        missing = weighted.index(False)
        raise ConfigError(f"`{path}[{missing}].weight` is missing; give every item one, or none.")
    temperature, *deeper = scope.temperatures or (1.0,)
    weights = [item.weight**temperature if item.weight is not None else None for item in items]
    total = sum(weight for weight in weights if weight is not None)
    for index, (item, weight) in enumerate(zip(items, weights, strict=True)):
        share = scope.weight if weight is None else (scope.weight or 1.0) * weight / total
        inner = replace(
            scope, path=f"{path}[{index}]", weight=share, temperatures=tuple(deeper),
            tags={**(scope.tags or {}), **(item.tags or {})},
        )  # fmt: skip
        if isinstance(item, GroupItem):
            yield from _group_sources(item, inner)
        else:
            yield from _item_sources(item, inner)


def _group_sources(item: GroupItem, scope: Scope) -> Iterator[Source]:
    """The sources of a group; without weights of their own they share its weight by size."""
    sources = list(_list_sources(item.input_cfg, replace(scope, path=f"{scope.path}.input_cfg")))
    if scope.weight is None or _all_weighted(item.input_cfg, scope.path):
        yield from sources
        return
    sizes = [max(len(source), 1) for source in sources]
    for source, size in zip(sources, sizes, strict=True):
        yield replace(source, weight=scope.weight * size / sum(sizes))


def _all_weighted(items: Sequence[Item] | str, path: str) -> bool:
    return all(item.weight is not None for item in _load_items(items, path)[0])


def _item_sources(item: InputItem, scope: Scope) -> Iterator[Source]:
    """The source of one item; a list of shar folders gives one source for each folder."""
    for shards, share in _shards_of(item, scope):
        name = f"{scope.path} ({getattr(item, 'type', 'data')})"
        if not shards:
            raise DataError(f"`{scope.path}`: names no files.")
        weight = share if scope.weight is None else scope.weight * (1.0 if share is None else share)
        yield Source(name, shards, scope.faults, _conversion(item, scope), weight)


def _shards_of(item: InputItem, scope: Scope) -> Iterator[tuple[list[Shard], float | None]]:
    """(shards, share) of each part of an item; the share is None where sizes decide."""
    if isinstance(item, CutsInput):
        yield from _cuts_shards_of(item, scope)
    elif isinstance(item, ShareGptItem):
        yield share_gpt_shards(item), None
    elif isinstance(item, MultimodalConversationItem):
        yield conversation_shards(item), None
    elif isinstance(item, SftItem):
        yield sft_shards(item.paths), None
    elif isinstance(item, TextItem):
        field = scope.value(item, "text_field") if item.type == "txt_jsonl" else None
        yield text_shards(item.paths, text_field=field, language=item.language), None
    elif isinstance(item, TextPairItem):
        yield pair_shards(item), None
    elif isinstance(item, TextPairsItem):
        yield text_pairs_shards(item.paths, fields=_text_fields(item, scope)), None
    elif isinstance(item, HfDatasetItem):
        yield hf_dataset_shards(item, fields=_text_fields(item, scope), path=scope.path), None
    elif isinstance(item, GeneratedItem):
        yield generated_shards(item, path=scope.path), None
    elif isinstance(item, NemoItem):
        yield nemo_parsed_shards(item, path=scope.path, config=scope.config), None


def _text_fields(item: TextFieldsItem, scope: Scope) -> TextFields:
    """Where the text and the prompt of a row are; token ids take the place of either."""
    has_text, has_prompt = item.input_ids_field is None, item.prompt_ids_field is None
    return TextFields(
        text=scope.value(item, "text_field") if has_text else None,
        prompt=item.prompt_field if has_prompt else None,
        input_ids=item.input_ids_field,
        prompt_ids=item.prompt_ids_field,
    )


def _cuts_shards_of(item: CutsInput, scope: Scope) -> Iterator[tuple[list[Shard], float | None]]:
    if item.cuts_path is not None:
        yield cuts_shards(item.cuts_path), None
    elif item.manifest_filepath is not None:
        shards = nemo_shards(
            item.manifest_filepath,
            item.tarred_audio_filepaths,
            text_field=scope.value(item, "text_field"),
            lang_field=scope.value(item, "lang_field"),
            skip_missing=item.skip_missing_manifest_entries,
        )
        yield shards, None
    elif not isinstance(item.shar_path, list):
        yield shar_shards(item.shar_path, scope.faults), None
    elif all(isinstance(folder, str) for folder in item.shar_path):
        folders = item.shar_path
        yield [shard for folder in folders for shard in shar_shards(folder, scope.faults)], None
    else:
        yield from _weighted_folders(item.shar_path, f"{scope.path}.shar_path", scope.faults)


def _weighted_folders(
    pairs: list[Any], path: str, faults: Faults
) -> Iterator[tuple[list[Shard], float]]:
    """`[[folder, weight], ...]`"""
    for index, pair in enumerate(pairs):
        valid = isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)
        if not valid or isinstance(pair[1], bool) or not isinstance(pair[1], int | float):
            raise ConfigError(f"`{path}[{index}]` must be [folder, weight], but is {pair!r}.")
        if pair[1] <= 0:
            raise ConfigError(f"`{path}[{index}][1]` must be above 0, but is {pair[1]} instead.")
    total = sum(weight for _, weight in pairs)
    for folder, weight in pairs:
        yield shar_shards(folder, faults), weight / total


def _conversion(item: InputItem, scope: Scope) -> Callable[[Example], Example] | None:
    """What is done to each example: attributes first, then the conversation."""
    to_conversation = isinstance(item, CutsAsConversationItem)
    tags = dict(scope.tags or {})
    if scope.default_context is not None and not to_conversation:
        # plain cuts carry it along, for collators that make conversations of them
        tags = {"default_context": scope.default_context, **tags}
    if not tags and not to_conversation:
        return None
    context = scope.default_context if to_conversation else None
    return partial(_convert, tags=tags, to_conversation=to_conversation, context=context)


def _convert(
    example: Example, *, tags: Mapping[str, Any], to_conversation: bool, context: str | None
) -> Example:
    if tags:
        example = with_tags(example, tags)
    if to_conversation and isinstance(example, Cut):
        return as_conversation(example, default_context=context)
    return example
