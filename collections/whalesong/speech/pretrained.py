"""The pretrained parts: from folders and `.nemo` files to train, then from an archive."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.errors import HydraException
from nemo.collections.asr.models import ASRModel
from nemo.collections.common.tokenizers import AutoTokenizer
from nemo.collections.speechlm2.modules.perception import AudioPerceptionModule
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from whalesong.core.errors import ArchiveError, ConfigError
from whalesong.core.instantiate import check_keywords, check_targets
from whalesong.core.printable import one_line
from whalesong.core.targets import DEFAULT_TARGETS
from whalesong.modules.llm import describe_missing, llm_from_config, load_llm
from whalesong.modules.nemo_file import check_classes, read_nemo
from whalesong.speech.asr_classes import check_asr

LLM_CONFIG = "llm_config.json"
GENERATION_CONFIG = "llm_generation_config.json"


@dataclass(frozen=True)
class AsrFile:
    """An ASR model of NeMo as its file describes it; nothing of it is built."""

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]


def build_llm(cfg: DictConfig, assets: Mapping[str, bytes] | None) -> PreTrainedModel:
    """The LLM that `pretrained_llm` names, or its empty architecture from an archive."""
    if assets is None:
        try:
            return load_llm(
                cfg.pretrained_llm, pretrained_weights=cfg.get("pretrained_weights", True)
            )
        except Exception as error:  # transformers may fail in any way at what a folder holds
            raise ConfigError(f"`model.pretrained_llm`: {one_line(error)}") from error
    llm = llm_from_config(_read_json(assets, LLM_CONFIG))
    llm.generation_config = GenerationConfig.from_dict(_read_json(assets, GENERATION_CONFIG))
    return llm


def build_tokenizer(cfg: DictConfig, assets: Mapping[str, bytes] | None) -> Any:
    """NeMo's `AutoTokenizer` of the LLM."""
    if assets is None:
        return _load_tokenizer(cfg.pretrained_llm)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in assets.items():
            (Path(folder) / name).write_bytes(content)
        return _load_tokenizer(folder)


def collect_assets(llm: PreTrainedModel, tokenizer: Any) -> dict[str, bytes]:
    """What an archive needs beside config and weights to build LLM and tokenizer without a hub."""
    assets = {
        LLM_CONFIG: json.dumps(llm.config.to_dict(), indent=2).encode(),
        GENERATION_CONFIG: json.dumps(llm.generation_config.to_dict(), indent=2).encode(),
    }
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                assets[path.name] = path.read_bytes()
    return assets


def build_perception(cfg: DictConfig, llm: PreTrainedModel, *, restored: bool) -> nn.Module:
    """Perception with the encoder of `pretrained_asr`; `cfg.perception` is completed on the way.

    Args:
        cfg: the model's own copy of the `model` section.
        llm: gives the width of the output.
        restored: the section comes from an archive, so it is complete and weights follow.
    """
    asr = None
    if not restored and cfg.get("pretrained_asr") is not None:
        asr = read_asr(cfg.pretrained_asr)
    complete_perception(cfg, asr, llm_width=llm.get_input_embeddings().embedding_dim)
    section = OmegaConf.to_container(cfg.perception, resolve=True)
    check_targets(section)
    for name in ("preprocessor", "encoder", "modality_adapter", "spec_augment"):
        if section.get(name) is not None:
            check_keywords(section[name], path=f"model.perception.{name}")
    try:
        perception = AudioPerceptionModule(cfg.perception)
    except (ValueError, TypeError, RuntimeError, AssertionError, HydraException) as error:
        raise ConfigError(f"`model.perception`: {one_line(error)}") from error
    if asr is not None and cfg.get("pretrained_weights", True):
        copy_encoder(asr, perception)
    return perception


def complete_perception(cfg: DictConfig, asr: AsrFile | None, *, llm_width: int) -> None:
    """Fill in what the YAML leaves to the ASR model and the LLM.

    Keys that the YAML gives win over those of the ASR model; null in the YAML does not.
    """
    perception = cfg.perception
    with open_dict(cfg):
        for name in ("preprocessor", "encoder"):
            own = {k: v for k, v in (perception.get(name) or {}).items() if v is not None}
            if asr is not None:
                perception[name] = OmegaConf.merge(asr.config[name], own)
            elif not own:
                raise ConfigError(
                    f"`model.perception.{name}` is mandatory without `model.pretrained_asr`, "
                    "but has no value."
                )
        if str(perception.encoder.get("subsampling")).startswith("stacking"):
            # else NeMo's frame count of a row depends on the longest row of its batch
            perception.preprocessor.pad_to = perception.encoder.subsampling_factor
        perception.output_dim = llm_width
        adapter = perception.modality_adapter
        if "output_dim" in adapter:
            adapter.output_dim = llm_width
        for key in ("feat_in", "d_model", "input_dim"):
            if key in adapter and adapter[key] is None:
                adapter[key] = perception.encoder.d_model


def read_asr(name_or_path: str, *, key: str = "model.pretrained_asr") -> AsrFile:
    """Read a NeMo ASR model from a `.nemo` file or by its published name; no code of it runs.

    Args:
        name_or_path: of the model.
        key: where the name stands in the YAML, for errors.

    Raises:
        ConfigError: there is no such file, it is unsafe, or the name cannot be reached.
    """
    try:
        config, weights = read_nemo(_find_asr(name_or_path, key=key))
        for name in ("preprocessor", "encoder"):
            if not isinstance(config.get(name), dict):
                raise ValueError(f"'{name_or_path}' holds no `{name}`.")
            check_classes(config[name], DEFAULT_TARGETS, path=name)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"`{key}`: {error}") from error
    return AsrFile(config, weights)


def load_asr(name_or_path: str, *, key: str) -> ASRModel:
    """Build a whole NeMo ASR model from a `.nemo` file or by its published name.

    Raises:
        ConfigError: as `read_asr`, and for any class that is no part of NeMo's ASR models.
    """
    path = _find_asr(name_or_path, key=key)
    try:
        check_asr(read_nemo(path)[0])
    except ValueError as error:
        raise ConfigError(f"`{key}`: '{name_or_path}': {error}") from error
    return ASRModel.restore_from(str(path), map_location="cpu").eval()


def _find_asr(name_or_path: str, *, key: str) -> Path:
    """The file itself, or that of a published name."""
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    if name_or_path.endswith(".nemo"):
        raise ConfigError(f"`{key}` must be an existing file, but '{name_or_path}' is not.")
    try:
        return Path(ASRModel.from_pretrained(name_or_path, return_model_file=True))
    except Exception as error:  # NeMo's hub code raises what its transport raises
        raise ConfigError(f"`{key}`: {describe_missing(name_or_path, error)}") from error


@torch.no_grad()
def copy_encoder(asr: AsrFile, perception: nn.Module) -> None:
    """Copy front end and encoder weights of an ASR model; another shape is refused."""
    for name in ("preprocessor", "encoder"):
        prefix, target = f"{name}.", getattr(perception, name)
        state = {k.removeprefix(prefix): v for k, v in asr.weights.items() if k.startswith(prefix)}
        try:
            target.load_state_dict(state)
        except RuntimeError as error:
            raise ConfigError(
                f"`model.perception.{name}` does not fit the weights of `model.pretrained_asr`: "
                f"{str(error).splitlines()[-1].strip()}"
            ) from error


def _load_tokenizer(name_or_path: str) -> Any:
    try:
        return AutoTokenizer(name_or_path, use_fast=True)
    except Exception as error:  # transformers may fail in any way at what a folder holds
        cause = one_line(describe_missing(name_or_path, error))
        raise ConfigError(f"`model.pretrained_llm`: {cause}") from error


def _read_json(assets: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in assets:
        raise ArchiveError(f"the archive must hold '{name}', but does not.")
    return json.loads(assets[name])
