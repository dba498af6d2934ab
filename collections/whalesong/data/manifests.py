"""Reading text manifests line by line, so that every fault has a file and a line."""

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from whalesong.core.errors import ConfigError, DataError
from whalesong.data.faults import Faults, cause

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand_paths(paths: Any, *, key: str) -> list[str]:
    """Flatten nested lists of paths and expand `_OP_0..7_CL_` and `{0..7}` ranges.

    Raises:
        ConfigError: something that is no path, or a path that is not on this machine's disks.
    """
    if isinstance(paths, list | tuple):
        return [path for item in paths for path in expand_paths(item, key=key)]
    if not isinstance(paths, str | Path):
        raise ConfigError(f"`{key}` must hold paths, but holds {paths!r} instead.")
    text = str(paths).replace("_OP_", "{").replace("_CL_", "}")
    if "://" in text or text.startswith("pipe:"):
        raise ConfigError(
            f"`{key}` must hold local paths, for random access, but holds {text!r} instead."
        )
    found = RANGE.search(text)
    if found is None:
        return [text]
    first, last = found.groups()
    numbers = (str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    return [
        path
        for number in numbers
        for path in expand_paths(f"{text[: found.start()]}{number}{text[found.end() :]}", key=key)
    ]


def open_text(path: str) -> IO[bytes]:
    """Open a manifest, compressed or not, for reading lines of bytes."""
    if path.endswith((".tar", ".zip", ".xz", ".bz2")):
        raise DataError(f"{path}: a manifest must be a text file or a .gz file.")
    return gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")


def read_lines(path: str, faults: Faults) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) of every line that is not blank; numbers start at 1."""
    number = 0
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8").strip()
                except UnicodeDecodeError:
                    faults.report(f"{path}, line {number}: is not UTF-8 text.")
                    continue
                if text:
                    yield number, text
    except (OSError, EOFError, zlib.error) as error:
        faults.report(f"{path}: cannot be read after line {number} ({cause(error)}).")


def read_jsonl(path: str, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of every line that is a JSON object."""
    for number, line in read_lines(path, faults):
        try:
            data = json.loads(line)
        except ValueError as error:
            faults.report(f"{path}, line {number}: is not JSON ({cause(error)}).")
            continue
        if isinstance(data, dict):
            yield number, data
        else:
            faults.report(f"{path}, line {number}: must be a JSON object.")


@lru_cache(maxsize=65536)
def count_lines(path: str) -> int:
    """Number of lines of a manifest, as far as it is readable; counted once in this process."""
    count, last = 0, b"\n"
    try:
        with open_text(path) as file:
            while chunk := file.read(1 << 20):
                count, last = count + chunk.count(b"\n"), chunk[-1:]
    except (OSError, EOFError, zlib.error):
        return count
    return count + (last != b"\n")


def parse_cut(data: dict[str, Any]) -> Cut:
    """Build a cut from its manifest line and check what loading relies on.

    Raises:
        DataError: what is wrong, starting with "cut <id>:"; the caller names file and line.
    """
    name = f"cut {data.get('id', '(no id)')}"
    _check_number(data.get("duration", 1.0), name=name, key="duration")
    try:
        cut = deserialize_item(data)
    except Exception as error:
        raise DataError(f"{name}: is not a lhotse cut ({cause(error)})") from error
    if not isinstance(cut, Cut):
        raise DataError(f"{name}: is not a lhotse cut, but {type(cut).__name__}")
    check_cut(cut)
    return cut


def check_cut(cut: Cut) -> None:
    """Refuse a cut without length, and supervisions that cannot be used."""
    name = f"cut {cut.id}"
    _check_number(cut.duration, name=name, key="duration")
    for segment in cut.supervisions:
        check_text(segment.text, name=name)
        if segment.start >= cut.duration or segment.end <= 0:
            raise DataError(
                f"{name}: its supervision lies at {segment.start:.2f}-{segment.end:.2f} s, "
                f"outside the {cut.duration:.2f} s of the cut"
            )


def check_text(text: Any, *, name: str) -> None:
    """Refuse a text that is no string, or none that can be encoded."""
    if text is None:
        return
    if not isinstance(text, str):
        raise DataError(f"{name}: its text must be a string, but is {text!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{name}: its text is no valid Unicode ({cause(error)})") from error


def _check_number(value: Any, *, name: str, key: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{name}: its {key} must be a number, but is {value!r}")
    if not math.isfinite(value) or value <= 0:
        raise DataError(f"{name}: its {key} must be above 0 s, but is {value}")
