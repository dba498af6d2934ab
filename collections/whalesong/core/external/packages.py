"""Package-based discovery: `XLM_MODELS_PACKAGES` and entry points of installed distributions."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from whalesong.core.external.directories import Findings
from whalesong.core.external.layout import model_in_package

PACKAGES_VARIABLE = "XLM_MODELS_PACKAGES"
ENTRY_POINTS = "whalesong.models"


def in_packages(environ: Mapping[str, str]) -> Findings:
    """The models that the environment variable names."""
    names = [name.strip() for name in environ.get(PACKAGES_VARIABLE, "").split(":")]
    names = list(dict.fromkeys(name for name in names if name))
    found = [model_in_package(n, origin="package", found_by=PACKAGES_VARIABLE) for n in names]
    return Findings(found, searched=[f"{PACKAGES_VARIABLE}: {', '.join(names) or 'not set'}"])


def in_entry_points() -> Findings:
    """The models that installed distributions declare, `name = package` in `whalesong.models`."""
    found = []
    for point in entry_points(group=ENTRY_POINTS):
        by = f"installed by {point.dist.name}" if point.dist else ENTRY_POINTS
        model = model_in_package(point.name, origin="entry point", found_by=by)
        found.append(model.broken(problem) if (problem := _problem(point)) else model)
    names = ", ".join(model.name for model in found)
    return Findings(found, searched=[f"entry points {ENTRY_POINTS}: {names or 'none'}"])


def _problem(point: EntryPoint) -> str | None:
    if point.module == point.name:
        return None
    return f"its entry point must name the package {point.name}, but names {point.value}"
