"""`job_type=inspect`: what a `.nemo` archive or a checkpoint holds, without loading a model.

Nothing of the file is executed, and neither NeMo nor Lightning is imported; torch only once there
is a file to read. What is printed of a file of unknown origin has no control characters.
"""

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from whalesong.core.errors import (
    ArchiveError,
    CheckpointError,
    ConfigError,
    ModelNotFoundError,
    UserError,
)
from whalesong.core.external.activation import activate_for
from whalesong.core.families import family_of
from whalesong.core.instantiate import check_targets
from whalesong.core.printable import one_line

if TYPE_CHECKING:
    from whalesong.core.archive import Archive

_FACTS = (
    ("sample rate", "sample_rate"),
    ("codec", "pretransform.type"),
    ("codec", "pretrained_audio_codec"),
    ("LLM", "pretrained_llm"),
    ("recognizer", "pretrained_asr"),
    ("prompt format", "prompt_format"),
    ("audio placeholder", "audio_locator_tag"),
    ("adapter", "perception.modality_adapter._target_"),
    ("LoRA rank", "lora.r"),
    ("network", "network._target_"),
    ("loss", "loss._target_"),
    ("width", "d_model"),
    ("width", "network.d_model"),
    ("width", "lm.config.embed_dim"),
    ("layers", "num_layers"),
    ("layers", "network.num_layers"),
    ("layers", "lm.config.depth"),
    ("heads", "num_heads"),
    ("heads", "network.num_heads"),
    ("codebooks", "num_quantizers"),
    ("codebook size", "codebook_size"),
    ("codebook pattern", "lm.codebook_pattern"),
    ("speech decoder", "speech_decoder.n_layers"),
    ("window in seconds", "window_seconds"),
    ("tokenizer", "tokenizer.type"),
    ("target tokens", "block_size"),
    ("prompt tokens", "input_block_size"),
)
"""What a user asks first, by its place in the `model` section."""

_REQUESTS = {
    "SALM": ("predict.audio=[a.wav]",),
    "CodecLMModel": ("predict.prompts=[TEXT]", "predict.output_dir=generated"),
    "AudioLMModel": ("predict.begin=[a.wav]", "predict.output_dir=generated"),
    "DuplexS2SModel": ("predict.audio=[a.wav]", "predict.output_dir=generated"),
    "DuplexS2SSpeechDecoderModel": ("predict.audio=[a.wav]", "predict.output_dir=generated"),
    "TextLMModel": ("predict.prompts=[TEXT]",),
}
_TEST_SETS = {"TextLMModel": "data.test_ds.input_cfg=[{type: text_pairs, paths: FILE}]"}
_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        path: the file.
        facts: what it is, each as (name, value).
        config: the `model` section; empty if the file has none.
        tensors: type and shape of each tensor of the model.
        files: bytes of each file inside an archive.
        family: public name of the model's class; null for one that is not ours.
    """

    path: Path
    facts: Sequence[tuple[str, Any]]
    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, Sequence[int]]]
    files: Mapping[str, int] = field(default_factory=dict)
    family: str | None = None


def run(overrides: Sequence[str]) -> None:
    """Do `xlm job_type=inspect model=FILE`: print what the file holds.

    Args:
        overrides: those of the command line.

    Raises:
        ConfigError: no file is named, or it does not exist, or there are other keys.
        ArchiveError, CheckpointError: the file is damaged or unsafe; the exit code is 1.
    """
    path = requested_file(overrides)
    try:
        content = read(path)
    except (ArchiveError, CheckpointError) as error:
        error.exit_code = 1
        raise
    print("\n".join(lines(content)))


def requested_file(overrides: Sequence[str]) -> Path:
    """The file that `model=FILE` names.

    Raises:
        ConfigError: there is none, or something else is asked for, too.
    """
    given = dict(line.lstrip("+").partition("=")[::2] for line in overrides)
    given.pop("job_type", None)
    name = given.pop("model", "")
    if len(name) > 1 and name[0] == name[-1] and name[0] in "'\"":
        name = name[1:-1]
    if given:
        raise ConfigError(f"`{next(iter(given))}` is not for job_type=inspect, which has `model`.")
    if not name:
        raise ConfigError("`model` is mandatory for job_type=inspect: model=FILE.nemo.")
    if not Path(name).is_file():
        raise ConfigError(f"`model` must be an existing file, but '{name}' is not.")
    return Path(name)


def read(path: Path) -> Content:
    """Verify a file and describe it.

    Args:
        path: a checkpoint if it ends in `.ckpt`, else an archive.

    Raises:
        ArchiveError, CheckpointError: it is damaged, unsafe, or something else.
    """
    if path.suffix == ".ckpt":
        return _read_checkpoint(path)
    from whalesong.core.archive import open_archive

    with open_archive(path) as archive:
        return _read_archive(archive)


def lines(content: Content) -> list[str]:
    """The printed description."""
    config = yaml.safe_dump(dict(content.config), sort_keys=False).rstrip()
    found = [(name, _value(content.config, place)) for name, place in _FACTS]
    return [
        *_table([(name, one_line(value)) for name, value in content.facts]),
        *_section("Files", [(name, f"{size:,}") for name, size in content.files.items()]),
        *_section("Parameters", _parameters(content.tensors)),
        *_section("Model", [(n, one_line(value)) for n, value in found if value is not None]),
        *(["", "Configuration", *(f"  {line}" for line in config.splitlines())] if config else []),
        *_next_commands(content),
    ]


def _read_archive(archive: "Archive") -> Content:
    family, fate = _family(archive.config), "may be restored"
    if family is None:
        fate = "is restored by NeMo, not by Whalesong"
    else:
        try:
            activate_for(archive.config, source=archive.path)
            check_targets(archive.config)
        except ModelNotFoundError as error:
            fate = f"cannot be restored here: {error}"
        except UserError as error:
            raise ArchiveError(f"{archive.path}: model_config.yaml: {error}") from error
    if archive.legacy:
        tensors = {name: _of_tensor(tensor) for name, tensor in archive.tensors().items()}
        checked = "those of the weights alone; an archive of NeMo has no others"
    else:
        entries = archive.tensor_entries()
        tensors = {n: (_TYPES.get(e["dtype"], e["dtype"]), e["shape"]) for n, e in entries.items()}
        checked = f"all {len(archive.sizes)} files are as they were written"
    slim = "slim: what was trained, without the frozen parts"
    facts = [
        ("archive", archive.path),
        ("class", archive.target),
        ("kind", "whole" if archive.kind == "whole" else slim),
        ("written by", archive.writer),
        ("checksums", checked),
        ("classes", fate),
        *((f"metadata {key}", value) for key, value in archive.metadata.items()),
    ]
    return Content(archive.path, facts, archive.config, tensors, archive.sizes, family)


def _read_checkpoint(path: Path) -> Content:
    from whalesong.core.torch_file import TorchFileError, load_torch_file, named_tensors

    try:
        with open(path, "rb") as file:
            checkpoint = load_torch_file(file)
    except TorchFileError as error:
        raise CheckpointError(f"{path}: {error}.") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened ({error.strerror}).") from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path}: is no checkpoint: it has no `state_dict`.")
    hyper_parameters = checkpoint.get("hyper_parameters")
    config = hyper_parameters.get("cfg") if isinstance(hyper_parameters, dict) else None
    config = config if isinstance(config, dict) else {}
    tensors = {name: _of_tensor(t) for name, t in named_tensors(checkpoint["state_dict"])}
    facts = [
        ("checkpoint", path),
        ("class", config.get("target", "unknown")),
        ("step", checkpoint.get("global_step", "unknown")),
        ("epoch", checkpoint.get("epoch", "unknown")),
        ("batches of data", _consumed(checkpoint)),
        ("optimizer", "yes" if checkpoint.get("optimizer_states") else "no"),
        ("checksums", "all entries are whole"),
    ]
    return Content(path, facts, config, tensors, family=_family(config))


def _consumed(checkpoint: Mapping[str, Any]) -> Any:
    """Batches that a rank had trained on, as the data module keeps it."""
    state = checkpoint.get("LanguageDataModule")
    return state.get("consumed", "unknown") if isinstance(state, dict) else "unknown"


def _family(config: Mapping[str, Any]) -> str | None:
    try:
        return family_of(config.get("target")).name
    except ConfigError:
        return None


def _of_tensor(tensor: Any) -> tuple[str, Sequence[int]]:
    return str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)


def _parameters(tensors: Mapping[str, tuple[str, Sequence[int]]]) -> list[tuple[str, str]]:
    """Numbers of all tensors and of each part, and the types."""
    sizes, types = Counter[str](), Counter[str]()
    depth = 2 if all(name.startswith("model.") for name in tensors) else 1
    for name, (kind, shape) in tensors.items():
        count = math.prod(shape)
        types[kind] += count
        sizes[one_line(".".join(name.split(".")[:depth]))] += count
    rows = [("all", f"{sum(sizes.values()):,} in {len(tensors):,} tensors")]
    rows += [(kind, f"{count:,}") for kind, count in types.most_common()] if types else []
    return rows + [(name, f"{count:,}") for name, count in sizes.most_common()]


def _value(config: Mapping[str, Any], place: str) -> Any:
    """What stands at a dotted place of the configuration, or None."""
    value: Any = config
    for part in place.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _next_commands(content: Content) -> list[str]:
    """How the model is evaluated and used."""
    if content.family is None:
        return []
    path = str(content.path)
    test_set = _TEST_SETS.get(content.family, "data.test_ds.shar_path=FOLDER")
    commands = [
        ["xlm", "job_type=eval", f"eval.ckpt_path={path}", test_set],
        ["xlm", "job_type=predict", f"predict.ckpt_path={path}", *_REQUESTS[content.family]],
    ]
    return ["", "Next", *(f"  {shlex.join(command)}" for command in commands)]


def _section(title: str, rows: Sequence[tuple[str, str]]) -> list[str]:
    return ["", title, *_table(rows, indent="  ")] if rows else []


def _table(rows: Iterable[tuple[str, str]], *, indent: str = "") -> list[str]:
    """Names and values in two columns."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    return [f"{indent}{name:{width}}  {value}" for name, value in rows]
