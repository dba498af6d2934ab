"""Making the code of a discovered model importable, and its classes buildable, when it is used."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from whalesong.core.errors import ConfigError, ModelNotFoundError, UserError
from whalesong.core.external.discovery import CORE_MODELS, discover
from whalesong.core.external.layout import model_in_package, package_folder
from whalesong.core.external.model import ExternalModel
from whalesong.core.external.packages import PACKAGES_VARIABLE
from whalesong.core.external.registry import Registry
from whalesong.core.external.source import lookup_problem
from whalesong.core.external.yaml_files import targets_of
from whalesong.core.instantiate import (
    DEFAULT_TARGETS,
    allowed_targets,
    register_target,
    unable_to_find,
    walk,
)

_OWN = "whalesong"


def activate(model: ExternalModel) -> None:
    """Let the code of a model be imported, and the classes that its own YAML names be built.

    Its folder goes to the front of `sys.path` unless its package is found anyway; spawned workers
    inherit that, launched ranks run the same command. Nothing is imported here.

    Raises:
        ModelNotFoundError: the model is broken.
        ConfigError: this process has imported another package of its name.
    """
    if model.origin == "core":
        return
    if model.import_path is None or model.package is None:
        raise ModelNotFoundError(f"No module named '{model.name}': {model.problem}")
    _forget_other(model.name, model.package)
    found = package_folder(model.name)
    if found is None or found.resolve() != model.package.resolve():
        sys.path.insert(0, str(model.import_path))
    for target in targets_of(model):
        register_target(target)


def activate_for(
    config: Any,
    *,
    source: str | Path | None = None,
    registry: Registry | None = None,
    composed: bool = False,
) -> list[ExternalModel]:
    """Activate every model whose classes a configuration names as `_target_`.

    Args:
        config: plain containers or a DictConfig.
        source: the archive from which the configuration comes, for the messages.
        registry: what `discover` gave; called where it is needed by default.
        composed: the user's own YAML and command line made the configuration, and may name classes
            of a model that the model's YAML does not; an archive may not.

    Returns:
        The external models that are used.

    Raises:
        ModelNotFoundError: a package that is neither installed nor a known model, or a broken one.
        ExternalModelConflictError: two models of that name.
        ConfigError: a class that its package does not have.
    """
    used: dict[str, ExternalModel] = {}
    for path, target in _foreign_targets(config):
        registry = registry or discover()
        try:
            model = _model_of(target, path=path, registry=registry, source=source)
            if model is not None:
                _prepare(target, model, path=path)
        except UserError as error:
            if source is not None:
                error.add_note(f"Needed by {source}.")
            raise
        if model is not None:
            used[model.name] = model
            if composed:
                register_target(target)
    return list(used.values())


def _prepare(target: str, model: ExternalModel, *, path: str) -> None:
    """Activate the model of a class, which its package has to have."""
    activate(model)
    if problem := lookup_problem(target, package=model.package):
        raise unable_to_find(target, problem, path=path, import_path=model.import_path)


def _foreign_targets(config: Any) -> Iterator[tuple[str, str]]:
    """The `_target_` values with their paths, but for those that are allowed from the start."""
    if type(config).__module__.startswith("omegaconf."):
        from omegaconf import OmegaConf

        config = OmegaConf.to_container(config, resolve=False)
    for path, key, value in walk(config):
        is_name = isinstance(value, str) and "." in value and "${" not in value
        if key == "_target_" and is_name and not _is_built_in(value):
            yield path, value


def _is_built_in(target: str) -> bool:
    if target in DEFAULT_TARGETS:
        return True
    return target.startswith(f"{_OWN}.") and target in allowed_targets()


def _model_of(
    target: str, *, path: str, registry: Registry, source: str | Path | None
) -> ExternalModel | None:
    """The external model to which a class belongs; None for a class of another kind."""
    top = target.partition(".")[0]
    if top in registry.models and top not in CORE_MODELS and not _is_of_other(top, registry):
        return registry.get(top)
    if target in allowed_targets():
        return None
    if package_folder(top) is None and top not in sys.stdlib_module_names:
        error = registry.not_found(top, source=source)
        error.add_note(f"Unable to find or instantiate {target} (`{path}`)")
        raise error
    if source is None and (problem := lookup_problem(target)):
        raise unable_to_find(target, problem, path=path)
    if model_in_package(top, origin="package", found_by=PACKAGES_VARIABLE).problem is None:
        raise _unregistered(top, source=source)
    return None


def _is_of_other(name: str, registry: Registry) -> bool:
    """Whether a broken model has the name of an installed package, such as torch."""
    model, installed = registry.models[name], package_folder(name)
    if model.problem is None or installed is None:
        return False
    return model.package is None or model.package.resolve() != installed.resolve()


def _unregistered(name: str, *, source: str | Path | None) -> ModelNotFoundError:
    """The error of a model that is installed, but that nobody asked for."""
    prefix = "" if source is None else f"{source}: "
    error = ModelNotFoundError(f"{prefix}No module named '{name}' among the registered models")
    error.add_note(f"It is installed at {package_folder(name)}.")
    error.add_note(f"Next: export {PACKAGES_VARIABLE}={name}")
    return error


def _forget_other(name: str, package: Path) -> None:
    """Drop a namespace package of the model's name from `sys.modules`; refuse a real other one."""
    module = sys.modules.get(name)
    if module is None:
        return
    file = getattr(module, "__file__", None)
    if file is None:
        del sys.modules[name]
    elif Path(file).resolve().parent != package.resolve():
        raise ConfigError(
            f"The model '{name}' is at {package}, but this process has imported {file}."
        )
