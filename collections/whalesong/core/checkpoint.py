"""Checkpoints that are written whole or not at all and are read without executing anything."""

import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from omegaconf import Container, OmegaConf
from torch import Tensor

from whalesong.core.atomic import atomic_write
from whalesong.core.errors import CheckpointError
from whalesong.core.healing import heal_checkpoints
from whalesong.core.torch_file import (
    TorchFileError,
    load_torch_file,
    named_tensors,
    unsafe_globals,
)

__all__ = [
    "AtomicCheckpointIO",
    "heal_checkpoints",
    "is_finite",
    "model_section",
    "plain_hyper_parameters",
    "refuse_non_finite",
]

_LOG = logging.getLogger(__name__)
_OVERHEAD = 4 * 1024**2


class AtomicCheckpointIO(CheckpointIO):
    """Lightning plugin: atomic writes, checked and pickle-free reads.

    A save goes to a temporary file in the folder of the checkpoint, is flushed to the disk and
    renamed; tensors are streamed, never gathered in memory first. What could not be read back
    with `weights_only=True` is refused at the save, not at the resume.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,
    ) -> None:
        """Write `checkpoint` to `path`; the old file there stays whole until the new one is.

        Raises:
            CheckpointError: the disk is full, or something in it is not plain data.
        """
        if storage_options is not None:
            raise CheckpointError(f"{path}: `storage_options` are not supported.")
        checkpoint = plain_hyper_parameters(checkpoint)
        need = _stored_bytes(checkpoint) + _OVERHEAD
        with atomic_write(path, need=need, error=CheckpointError) as (sink, temporary):
            torch.save(checkpoint, sink)
            sink.flush()
            if unsafe := unsafe_globals(temporary):
                raise CheckpointError(
                    f"{path}: would hold {', '.join(unsafe[:3])}, which cannot be read back "
                    "safely; keep only numbers, strings, containers and tensors."
                )

    def load_checkpoint(
        self, path: str | Path, map_location: str | torch.device | Callable | None = "cpu"
    ) -> dict[str, Any]:
        """Test every checksum of the file, then read it with `weights_only=True`.

        Raises:
            CheckpointError: the file is missing, damaged, or holds more than plain data.
        """
        try:
            with open(path, "rb") as file:
                content = load_torch_file(file, map_location=map_location)
        except TorchFileError as error:
            raise CheckpointError(f"{path}: {error}.") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be opened ({error.strerror}).") from error
        if not isinstance(content, dict):
            raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a checkpoint.")
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint file, or the folder of a sharded one; a missing one is no error."""
        path = Path(path)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        _LOG.debug("removed checkpoint %s", path)


def plain_hyper_parameters(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `checkpoint` whose hyper-parameters are plain containers.

    A ModelPT stores its configuration as a DictConfig and the class of it as `hparams_type`;
    neither can be read with `weights_only=True`. Interpolations are resolved.
    """
    plain = {key: value for key, value in checkpoint.items() if key != "hparams_type"}
    if "hyper_parameters" in plain:
        plain["hyper_parameters"] = _plain(plain["hyper_parameters"])
    return plain


def model_section(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """The `model` section in a checkpoint of one of our models; nothing vouches for it.

    Raises:
        CheckpointError: there is none, or there are no weights beside it.
    """
    hyper_parameters = checkpoint.get("hyper_parameters")
    config = hyper_parameters.get("cfg") if isinstance(hyper_parameters, dict) else None
    if not isinstance(config, dict) or not isinstance(config.get("target"), str):
        raise CheckpointError(f"{path}: hyper_parameters: hold no `cfg` with the class of a model.")
    if not isinstance(checkpoint.get("state_dict"), dict):
        raise CheckpointError(f"{path}: state_dict: is missing.")
    return config


def refuse_non_finite(
    checkpoint: Mapping[str, Any],
    *,
    sections: Collection[str] = ("state_dict", "optimizer_states"),
    allow: Collection[str] = (),
) -> None:
    """Raise when a tensor of the checkpoint holds NaN or infinity.

    Args:
        checkpoint: as Lightning gives it to `on_save_checkpoint`.
        sections: top-level keys to look into.
        allow: paths such as `state_dict.mask` of tensors that hold infinities on purpose.

    Raises:
        CheckpointError: names the first such tensor.
    """
    for section in sections:
        for name, tensor in named_tensors(checkpoint.get(section, {}), section):
            if name not in allow and not is_finite(tensor):
                raise CheckpointError(
                    f"checkpoint at step {checkpoint.get('global_step', '?')}: `{name}` holds "
                    "NaN or infinity, so it is not saved; the last checkpoint stays."
                )


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    if tensor.element_size() == 1:  # torch has no `isfinite` for all 8-bit types
        tensor = tensor.float()
    # A sum is twenty times as fast, but may overflow where each value is finite.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _plain(value: Any) -> Any:
    """DictConfig, ListConfig and paths as dict, list and str."""
    if isinstance(value, Container):
        return _plain(OmegaConf.to_container(value, resolve=True, enum_to_str=True))
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _stored_bytes(checkpoint: Mapping[str, Any]) -> int:
    storages = [t.untyped_storage() for _, t in named_tensors(checkpoint) if _has_storage(t)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta
