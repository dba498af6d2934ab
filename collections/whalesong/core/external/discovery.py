"""Finding all models: the core ones, those in folders, and those in installed packages."""

import os
from collections.abc import Mapping
from pathlib import Path

from whalesong.core.config.compose import packaged_conf
from whalesong.core.external.directories import Findings, in_directories
from whalesong.core.external.model import ExternalModel
from whalesong.core.external.packages import in_entry_points, in_packages
from whalesong.core.external.registry import Registry

CORE_MODELS = ("arlm", "mlm", "ilm", "mdlm")
"""The text models that come with the package and need no registration."""


def discover(*, folder: Path | None = None, environ: Mapping[str, str] | None = None) -> Registry:
    """Find all models without importing code of any of them.

    A model that is broken does not stop another: its `problem`, or a conflict of names, is raised
    by `Registry.get`.

    Args:
        folder: where `.` is; the working directory by default.
        environ: the environment variables; those of the process by default.
    """
    folder = Path.cwd() if folder is None else Path(folder)
    environ = os.environ if environ is None else environ
    registry = Registry()
    registry.add(Findings([core_model(name) for name in CORE_MODELS]))
    registry.add(in_directories(folder, environ))
    registry.add(in_packages(environ))
    registry.add(in_entry_points())
    return registry


def core_model(name: str) -> ExternalModel:
    """A model that comes with the package; its configs lie in `conf/`."""
    models = Path(__file__).resolve().parents[2] / "models"
    return ExternalModel(name, models / name, models, packaged_conf(), "core", "whalesong")
