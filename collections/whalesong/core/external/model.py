"""What discovery knows of a model and of its commands, without having imported either."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

Origin = Literal["core", "directory", "package", "entry point"]


@dataclass(frozen=True)
class ExternalModel:
    """A model that `xlm` can name.

    Attributes:
        name: of the model and of its Python package.
        root: its folder; for a package that is not installed, the name.
        import_path: the folder that has to be on `sys.path`; None without a package.
        configs: its folder `configs`; None without one.
        origin: how it was found.
        found_by: the json file, environment variable or distribution that names it.
        problem: why it cannot be used; None for a sound one.
    """

    name: str
    root: Path
    import_path: Path | None
    configs: Path | None
    origin: Origin
    found_by: str
    problem: str | None = None

    @property
    def package(self) -> Path | None:
        """The folder of its Python package."""
        return None if self.import_path is None else self.import_path / self.name

    @property
    def place(self) -> Path:
        """What makes two findings one model: the real path of its package, or of its folder."""
        return (self.package or self.root).resolve()

    @property
    def config_folders(self) -> list[Path]:
        """The folders in which its config groups lie, first match wins."""
        if self.configs is None:
            return []
        inner = self.configs / "lightning_train"
        return [inner, self.configs] if inner.is_dir() else [self.configs]

    @property
    def location(self) -> str:
        """The line that tells where it is and who says so."""
        return f"{self.root} ({self.found_by})"

    def broken(self, problem: str) -> Self:
        """The same model with a problem; the first one that was found stays."""
        return self if self.problem else replace(self, problem=problem)


@dataclass(frozen=True)
class Command:
    """A job type that a model brings in `configs/commands.yaml`.

    Attributes:
        name: the job type.
        target: dotted name of the function, which takes the composed config.
        model: name of the model.
        file: where it stands.
    """

    name: str
    target: str
    model: str
    file: Path
