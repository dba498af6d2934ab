"""From the name of a codec to its pretransform section."""

import json
from pathlib import Path
from typing import Any

from whalesong.core.errors import ConfigError
from whalesong.sound.tokenize import read_pretransform

_FOLDERS = {"dac": "dac_pretrained", "encodec": "encodec", "mimi": "mimi"}


def find_codec(name_or_path: str) -> dict[str, Any]:
    """The section from which `build_codec` builds a pretrained codec.

    Args:
        name_or_path: a NeMo `.nemo` or its published name, a `.safetensors` of our own codecs, a
            Hugging Face folder of EnCodec, DAC or Mimi, or a YAML with a `pretransform` section.

    Raises:
        ConfigError: a file or folder that is none of these.
    """
    path = Path(name_or_path)
    if path.suffix in (".safetensors", ".yaml", ".yml"):
        return read_pretransform(path)
    kind = "nemo_codec"
    if path.is_dir():
        kind = _kind_of_folder(path)
    elif path.suffix == ".nemo" and not path.is_file():
        raise ConfigError(f"the codec '{path}' must be an existing file, but is not.")
    return {"type": kind, "config": {"model_path": name_or_path}}


def _kind_of_folder(folder: Path) -> str:
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the codec folder '{folder}' must hold a config.json ({error})."
        ) from error
    if kind not in _FOLDERS:
        known = ", ".join(sorted(_FOLDERS))
        raise ConfigError(f"the codec folder '{folder}' must be of {known}, but is of '{kind}'.")
    return _FOLDERS[kind]
