"""Tokenizing shar ahead of training: a file of codes for each shard."""

import json
import multiprocessing
import os
import random
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from lhotse.cut import Cut
from torch import Tensor
from tqdm.auto import tqdm

from whalesong.core.atomic import atomic_path
from whalesong.core.errors import ConfigError, DataError
from whalesong.data.channels import load_channels
from whalesong.data.codes import FIELD, CodecInfo, read_codec_info
from whalesong.data.codes_writer import write_codes
from whalesong.data.faults import Faults, cause
from whalesong.data.manifests import count_lines
from whalesong.data.shar_source import SHARD_FILE, read_shard
from whalesong.modules.codec import files as codec_files
from whalesong.modules.codec.build import build_codec
from whalesong.modules.codec.codec import Codec
from whalesong.sound.codec_info import describe_codec

BATCH_SIZE = 8
"""Recordings that are tokenized at once."""


@dataclass(frozen=True)
class TokenizeSummary:
    """What was written."""

    folder: Path
    codec: CodecInfo
    num_shards: int
    num_cuts: int
    num_kept: int
    """Shards that an earlier run had finished."""


@dataclass(frozen=True)
class ShardFiles:
    """One shard of a shar folder, and where its codes go."""

    number: str
    cuts: str
    fields: dict[str, str]
    target: Path


def tokenize_shar(
    folder: str | Path,
    pretransform: Mapping[str, Any],
    *,
    output: str | Path | None = None,
    jobs: int = 1,
) -> TokenizeSummary:
    """Add `codes.NNNNNN.tar` to every shard of a shar folder.

    Finished shards wait in a hidden folder beside it, so that a run that is stopped goes on there
    and readers see either no codes or all. A folder is done when this returns.

    Args:
        folder: shar with recordings.
        pretransform: section `{type, config}` of the codec.
        output: another folder, which gets the cuts and their codes but no recordings.
        jobs: processes.

    Raises:
        ConfigError: no such codec.
        DataError: no shar, codes of another codec, or audio that cannot be read.
    """
    if jobs < 1:
        raise ConfigError(f"`jobs` must be at least 1, but is {jobs} instead.")
    target = Path(folder if output is None else output).absolute()
    shards = find_shards(Path(folder), _waiting(target))
    codec = _load_codec(pretransform)
    info = describe_codec(codec)
    left = [shard for shard in shards if not _is_done(shard, target, info)]
    total = sum(count_lines(shard.cuts) for shard in left)
    with tqdm(
        total=total, desc=f"Tokenizing {target.name}", unit="cut", disable=not left
    ) as progress:
        for count in _run(left, pretransform, codec, info, jobs=jobs):
            progress.update(count)
    _publish(shards, target)
    counts = [count_lines(shard.cuts) for shard in shards]
    return TokenizeSummary(target, info, len(shards), sum(counts), len(shards) - len(left))


def find_shards(folder: Path, waiting: Path) -> list[ShardFiles]:
    """The shards of a shar folder with all fields but codes.

    Raises:
        DataError: there are none, or a file of one is missing.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such shar folder.")
    found: dict[str, dict[str, str]] = {}
    for file in sorted(folder.iterdir()):
        if (name := SHARD_FILE.match(file.name)) and name["field"] != FIELD:
            found.setdefault(name["number"], {})[name["field"]] = str(file)
    for number, fields in found.items():
        for field in ("cuts", "recording"):
            if field not in fields:
                raise DataError(f"{folder}: has no file {field}.{number}.* of shard {number}.")
    if not found:
        raise DataError(f"{folder}: holds no cuts (cuts.000000.jsonl.gz and so on).")
    return [
        ShardFiles(number, fields.pop("cuts"), fields, waiting / f"{FIELD}.{number}.tar")
        for number, fields in found.items()
    ]


def read_pretransform(path: str | Path) -> dict[str, Any]:
    """The pretransform section of a codec's file.

    Args:
        path: `.safetensors` of one of our own codecs; or YAML that is such a section, or has it as
            `pretransform` or `model.pretransform`.

    Raises:
        ConfigError: there is no such file, or no such section in it.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            codec = codec_files.load_codec(path)
            return {"type": codec.type_name, "config": {"model_path": str(path)}}
        section = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: holds no codec ({cause(error)}).") from error
    for key in ("model", "pretransform"):
        section = section.get(key, section) if isinstance(section, dict) else section
    if not isinstance(section, dict) or "type" not in section:
        raise ConfigError(f"{path}: must hold a section `pretransform` with a `type`.")
    return section


def tokenize_shard(shard: ShardFiles, codec: Codec, info: CodecInfo) -> int:
    """Write the codes of one shard; returns the number of cuts."""
    cuts = read_shard(shard.cuts, shard.fields, random.Random(0), Faults("raise"))
    with atomic_path(shard.target) as path:
        return write_codes(path, _encoded(cuts, codec), info)


def _tokenize_in_process(
    shard: ShardFiles, pretransform: Mapping[str, Any], info: CodecInfo, threads: int
) -> int:
    torch.set_num_threads(threads)
    return tokenize_shard(shard, _codec_of_process(json.dumps(pretransform)), info)


@lru_cache(maxsize=1)
def _codec_of_process(pretransform: str) -> Codec:
    """The codec, built once in a process."""
    return _load_codec(json.loads(pretransform))


def _load_codec(pretransform: Mapping[str, Any]) -> Codec:
    try:
        return build_codec(pretransform)
    except (AssertionError, NotImplementedError, ValueError, OSError) as error:
        raise ConfigError(f"the codec: {error}") from error


def _encoded(cuts: Iterable[Cut], codec: Codec) -> Iterator[tuple[Cut, Tensor]]:
    cuts = iter(cuts)
    while batch := list(islice(cuts, BATCH_SIZE)):
        rows = [
            load_channels(cut, sample_rate=codec.sample_rate, num_channels=codec.num_channels)
            for cut in batch
        ]
        lens = torch.tensor([row.shape[1] for row in rows])
        audio = torch.zeros(len(rows), codec.num_channels, int(lens.max()))
        for target, row in zip(audio, rows, strict=True):
            target[:, : row.shape[1]] = row
        codes, frames = codec.encode(audio, lens)
        for cut, row, count in zip(batch, codes, frames.tolist(), strict=True):
            yield cut, row[:, :count]


def _run(
    shards: list[ShardFiles],
    pretransform: Mapping[str, Any],
    codec: Codec,
    info: CodecInfo,
    *,
    jobs: int,
) -> Iterator[int]:
    """Tokenize shards; yields the number of cuts of each that is done."""
    if jobs == 1 or len(shards) < 2:
        yield from (tokenize_shard(shard, codec, info) for shard in shards)
        return
    # A process each on its cores: the threads of one would wait for those of another.
    threads = max(1, (os.cpu_count() or 1) // jobs)
    work = partial(
        _tokenize_in_process, pretransform=dict(pretransform), info=info, threads=threads
    )
    # Forked processes would inherit the threads of torch in an unknown state.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(jobs, mp_context=context) as pool:
            yield from pool.map(work, shards)
    except BrokenProcessPool as error:
        raise DataError(
            "a process was killed, perhaps for want of memory: run again with fewer `jobs`; "
            "finished shards are kept."
        ) from error


def _waiting(target: Path) -> Path:
    """Where finished shards wait for the others; lhotse would read a file beside the shards."""
    return target.with_name(f".codes-{target.name}")


def _is_done(shard: ShardFiles, target: Path, info: CodecInfo) -> bool:
    """Whether an earlier run has finished a shard."""
    published = target / shard.target.name
    if published.exists():
        if (maker := read_codec_info(published)) != info:
            raise DataError(
                f"{published}: holds codes of {maker or 'an unknown codec'}, not of {info}; "
                "remove it, or write to another folder (`output`)."
            )
        return True
    return shard.target.exists() and read_codec_info(shard.target) == info


def _publish(shards: list[ShardFiles], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for shard in shards:
        copy = target / Path(shard.cuts).name
        if not copy.exists():
            with atomic_path(copy) as path:
                shutil.copyfile(shard.cuts, path)
        if shard.target.exists():
            os.replace(shard.target, target / shard.target.name)
    shutil.rmtree(_waiting(target), ignore_errors=True)
