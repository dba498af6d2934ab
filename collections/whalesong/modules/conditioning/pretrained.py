"""What conditioners on pretrained parts share: frozen modules, tokenizers, and their files."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoFeatureExtractor, AutoTokenizer
from transformers import logging as transformers_logging

from whalesong.modules.conditioning.conditioner import pad_rows
from whalesong.modules.llm import describe_missing


class Frozen(nn.Module):
    """A pretrained module without gradients, in evaluation mode and in fp32 whatever happens.

    Args:
        module: what is frozen.
        trainable: let gradients and other precisions in after all; evaluation mode stays.
    """

    def __init__(self, module: nn.Module, *, trainable: bool = False) -> None:
        super().__init__()
        self.trainable = trainable
        self.module = module.requires_grad_(trainable).eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module."""
        if self.trainable:
            return self.module(*args, **kwargs)
        device = next(self.module.parameters()).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow to another device, but not to another precision."""

        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(fn if self.trainable else keep_precision, recurse)


def load_model(architecture: Any, name_or_path: str, **options: Any) -> Any:
    """Load a model of transformers in fp32 from a folder or the hub.

    Args:
        architecture: one of its classes, an `Auto` class or a plain one.
        name_or_path: a local folder, or a name on the hub.
        options: for its `from_pretrained`.

    Raises:
        ValueError: it cannot be found, or lacks weights of this architecture.
    """
    try:
        with _quiet():
            model, report = architecture.from_pretrained(
                name_or_path, dtype=torch.float32, output_loading_info=True, **options
            )
    except OSError as error:
        raise ValueError(describe_missing(name_or_path, error) + ".") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"'{name_or_path}' lacks {len(missing)} weights of a {architecture.__name__}, "
            f"first '{missing[0]}'."
        )
    return model


def empty_model(architecture: Any, config: Any) -> Any:
    """A model of transformers without its weights, in fp32.

    Args:
        architecture: one of its classes, an `Auto` class or a plain one.
        config: its configuration.
    """
    build = getattr(architecture, "from_config", None) or architecture._from_config
    return build(config, dtype=torch.float32)


def load_tokenizer(name_or_path: str, *, subfolder: str = "") -> Any:
    """A tokenizer of transformers from a folder or the hub.

    Raises:
        ValueError: it cannot be found, or is of an unknown kind.
    """
    try:
        return AutoTokenizer.from_pretrained(name_or_path, subfolder=subfolder)
    except OSError as error:
        raise ValueError(
            f"no tokenizer could be read: {describe_missing(name_or_path, error)}."
        ) from error
    except (ImportError, KeyError, ValueError) as error:
        raise ValueError(f"'{name_or_path}' holds no tokenizer of a known kind.") from error


def load_feature_extractor(name_or_path: str) -> Any:
    """A feature extractor of transformers from a folder or the hub.

    Raises:
        ValueError: it cannot be found.
    """
    try:
        return AutoFeatureExtractor.from_pretrained(name_or_path)
    except OSError as error:
        raise ValueError(describe_missing(name_or_path, error) + ".") from error


def saved_files(*parts: Any) -> dict[str, bytes]:
    """What `save_pretrained` of each part writes, by file name."""
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            part.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


@contextmanager
def unpacked(assets: Mapping[str, bytes]) -> Iterator[str]:
    """A folder with these files, as long as the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in assets.items():
            (Path(folder) / name).write_bytes(content)
        yield folder


def token_ids(
    tokenizer: Any, texts: Sequence[str], *, max_length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Token ids (B, S) with their mask, padded behind the end to the longest text only."""
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    ids, mask = pad_rows([torch.tensor(row, dtype=torch.long) for row in encoded])
    # Position ids of RoBERTa's kind are counted from the padding id on.
    ids = ids.masked_fill(~mask, tokenizer.pad_token_id or 0)
    return ids.to(device), mask.to(device)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from listing the weights that another part of a model needs."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
