"""Composing a job's config with the configs of external models behind the packaged ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from whalesong.core.config.compose import Composition, compose_files, packaged_conf
from whalesong.core.errors import ConfigError, ConfigNotFoundError
from whalesong.core.external.discovery import discover
from whalesong.core.external.registry import Registry

if TYPE_CHECKING:
    from omegaconf import DictConfig

_PARTS = ("model", "model_type")
_DEFAULT_DATA = "star_easy_"
_GROUPS_OF_MODELS = ("model", "model_type", "collator", "datamodule", "experiment")
_WITH_DATA = ("train", "eval", "prepare_data")
"""The job types that need a whole text model with its data."""


@dataclass(frozen=True)
class ComposedJob:
    """A composed config with what is known of its models.

    Attributes:
        cfg: the config.
        registry: all models that were found.
        used: names of the models that the config chooses, or whose files it is made of.
        datamodule: name of the data module that the config chooses.
    """

    cfg: "DictConfig"
    registry: Registry
    used: tuple[str, ...]
    datamodule: str | None = None


def compose_job(
    config_name: str,
    *,
    config_path: str | Path | None = None,
    overrides: Sequence[str] = (),
    script_dir: str | Path | None = None,
) -> ComposedJob:
    """Find all models and compose the config of a job, see `compose_files`.

    A model and a model type without data take the data module `star_easy_` of the model type.

    Raises:
        ConfigError: see `compose_files`; or a model without its model type, or the reverse.
        ConfigNotFoundError: see `compose_files`; with what was searched for models, too.
        ModelNotFoundError: a model that is chosen is broken.
        ExternalModelConflictError: a name that is used belongs to two models.
    """
    registry = discover()

    def composed(*more: str) -> Composition:
        return compose_files(
            config_name,
            config_path=config_path,
            overrides=[*overrides, *more],
            script_dir=script_dir,
            search_path=registry.config_roots(),
        )

    try:
        composition = composed()
        if (data := _default_data(composition)) is not None:
            composition = composed(f"datamodule={data}")
    except ConfigNotFoundError as error:
        _explain(error, registry)
        raise
    used = _used(composition, registry)
    for name in used:
        registry.check_conflict(name)
    _refuse_hidden(composition, registry)
    _check_pair(composition)
    return ComposedJob(composition.cfg, registry, used, composition.choices.get("datamodule"))


def _default_data(composition: Composition) -> str | None:
    """The data module of a model type that was chosen without data."""
    choices, section = composition.choices, composition.cfg.get("datamodule") or {}
    if choices.get("datamodule") or "collators" in section:
        return None
    chosen = _needs_data(composition) and all(choices.get(part) for part in _PARTS)
    return f"{_DEFAULT_DATA}{choices['model_type']}" if chosen else None


def _needs_data(composition: Composition) -> bool:
    from omegaconf import OmegaConf

    return OmegaConf.select(composition.cfg, "job_type", default=None) in _WITH_DATA


def _refuse_hidden(composition: Composition, registry: Registry) -> None:
    """Refuse a file that an external model has, too; only the user's own may hide another one."""
    for file, hidden in composition.hidden:
        owner, other = registry.owner_of(file), registry.owner_of(hidden)
        is_own = owner is None and not file.is_relative_to(packaged_conf())
        if other is not None and other != owner and not is_own:
            raise ConfigError(
                f"'{file.parent.name}/{file.stem}' is in two places, {file} and {hidden}; rename"
                f" the one of {other.name}."
            )


def _check_pair(composition: Composition) -> None:
    """Refuse a model without its model type, and the reverse."""
    if not _needs_data(composition):
        return
    model, model_type = (composition.choices.get(part) for part in _PARTS)
    if model_type and not composition.cfg.get("model"):
        raise ConfigError(
            f"`model_type` is '{model_type}', but there is no `model`; add model={model_type}."
        )
    if model and not composition.cfg.get("model_type"):
        raise ConfigError(
            f"`model` is '{model}', but there is no `model_type`; add model_type={model}."
        )


def _used(composition: Composition, registry: Registry) -> tuple[str, ...]:
    """The models that a config chooses by name, and those whose files it is made of."""
    chosen = [composition.choices.get(part) for part in _PARTS]
    owners = [registry.owner_of(file) for file in composition.files]
    names = [*chosen, *(owner.name for owner in owners if owner is not None)]
    return tuple(dict.fromkeys(name for name in names if name in registry.models))


def _explain(error: ConfigNotFoundError, registry: Registry) -> None:
    """Tell of the models, where the missing file is one of theirs.

    Raises:
        ModelNotFoundError: the file would be that of a broken model.
        ExternalModelConflictError: the file would be that of one of two models.
    """
    group, _, choice = error.name.rpartition("/")
    if group not in _GROUPS_OF_MODELS:
        return
    for name, model in registry.models.items():
        if choice == name or choice.endswith(f"_{name}"):
            if model.problem is not None or name in registry.conflicts:
                registry.get(name)
            error.add_note(f"The model {name} is known: {model.location}.")
            break
    else:
        error.add_note(f"Known models: {', '.join(registry.models)}")
    name = choice.rpartition("/")[2]
    for folder in (Path.cwd() / name, Path.cwd() / "xlm-models" / name):
        if group in _PARTS and (folder / "configs").is_dir() and name not in registry.models:
            error.add_note(f"{folder} looks like a model, but no xlm_models.json names it.")
    kinds = ("model", "model_type") if group in _PARTS else (group,)
    files = [f"configs/{kind}/{name}.yaml exists" for kind in kinds]
    if group == "datamodule" and name.startswith(_DEFAULT_DATA):
        error.add_note("Without datamodule=NAME and experiment=NAME, star_easy_ and the name of the"
                       " model type is taken.")  # fmt: skip
    registry.explain(
        error,
        checks=[
            *files,
            "the model is listed in xlm_models.json, or installed and in XLM_MODELS_PACKAGES",
            "config files have valid YAML syntax",
            "`_target_` paths point to correct classes",
        ],
    )
