"""Compose a job's config from YAML files, config groups and command-line overrides.

This is Hydra's compose API without `hydra.main`: no change of folder, no output folder. It adds
a search path (own config folders in front of the packaged one) and overrides that never need a
`+`, for strict schemas judge the keys later, with the full path and the nearest known key.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whalesong.core.config.schema_errors import near
from whalesong.core.errors import ConfigError, ConfigNotFoundError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Composition:
    """A composed config, and what it was made of.

    Attributes:
        cfg: the config.
        choices: the chosen file of each config group, None where nothing was chosen; a list where
            several were.
        files: all files that went in, the primary one first.
        hidden: pairs of such a file, but for the primary one, and one of the same name in a folder
            behind.
    """

    cfg: "DictConfig"
    choices: dict[str, Any]
    files: tuple[Path, ...]
    hidden: tuple[tuple[Path, Path], ...]


def compose(
    config_name: str,
    *,
    config_path: str | Path | None = None,
    overrides: Sequence[str] = (),
    script_dir: str | Path | None = None,
    search_path: Sequence[str | Path] = (),
) -> "DictConfig":
    """Compose one config; see `compose_files`."""
    return compose_files(
        config_name,
        config_path=config_path,
        overrides=overrides,
        script_dir=script_dir,
        search_path=search_path,
    ).cfg


def compose_files(
    config_name: str,
    *,
    config_path: str | Path | None = None,
    overrides: Sequence[str] = (),
    script_dir: str | Path | None = None,
    search_path: Sequence[str | Path] = (),
) -> Composition:
    """Compose one config and tell of what.

    Args:
        config_name: the primary file's name, with or without ".yaml".
        config_path: an own config folder, see `config_roots`.
        overrides: `key=value` to set or add a key, `group=choice` to pick a file of a config
            group, `~key` to delete; Hydra's `+` and `++` are accepted and mean the same.
        script_dir: the folder of the script that asks, see `config_roots`.
        search_path: more config folders, behind all others.

    Raises:
        ConfigNotFoundError: a file or group choice that is not there; with the near names and the
            folders that were searched.
        ConfigError: a folder or override that is not there, or a file that is no valid YAML.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    roots = config_roots(config_path, script_dir=script_dir, search_path=search_path)
    name = config_name.removesuffix(".yaml")
    group, _, choice = name.rpartition("/")
    _require(choice, group=group, roots=roots)
    arguments = [_normalized(override, roots=roots) for override in map(_parse, overrides)]
    try:
        return _load(name, overrides=arguments, roots=roots)
    except YAMLError as error:
        raise ConfigError(_yaml_sentence(error)) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise _refined(error, roots=roots) from error


def config_roots(
    config_path: str | Path | None = None,
    *,
    script_dir: str | Path | None = None,
    search_path: Sequence[str | Path] = (),
) -> list[Path]:
    """The folders in which configs are looked up, first match wins.

    A relative `config_path` is looked up from the working directory, then from the script's
    folder, then beside the packaged folder; without one, a folder `conf` in the working
    directory is taken if it is there. The packaged folder always comes behind it.

    Raises:
        ConfigError: no folder of that name exists; with the places that were tried.
    """
    packaged = packaged_conf()
    places = [Path.cwd(), *([Path(script_dir)] if script_dir else []), packaged.parent]
    wanted = Path(config_path or "conf").expanduser()
    candidates = [wanted] if wanted.is_absolute() else [place / wanted for place in places]
    found = [candidate.resolve() for candidate in candidates if candidate.is_dir()]
    if config_path and not found:
        tried = ", ".join(dict.fromkeys(map(str, candidates)))
        raise ConfigError(
            f"`--config-path` must be a folder, but {config_path} is none of {tried}."
        )
    behind = [Path(path).resolve() for path in search_path]
    return list(dict.fromkeys([*found, packaged, *behind]))


def packaged_conf() -> Path:
    """The folder `conf/` of this project: inside an installed package, or of a checkout."""
    package = Path(__file__).resolve().parents[2]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def _load(name: str, *, overrides: list[str], roots: Sequence[Path]) -> Composition:
    """Let Hydra compose; choices of groups that no defaults list names are appended to it.

    Hydra's public functions want the primary config in the first folder. Here it may lie in any,
    so that an own folder with nothing but an experiment goes in front of the packaged one.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.utils import create_config_search_path
    from hydra.core.utils import setup_globals
    from hydra.errors import ConfigCompositionException
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    setup_globals()
    search_path = create_config_search_path(None)
    for root in roots:
        search_path.prepend(provider="whalesong", path=f"file://{root}", anchor="schema")
    loader = ConfigLoaderImpl(config_search_path=search_path)
    loaded = _recorded(loader)
    try:
        cfg = loader.load_configuration(name, overrides, run_mode=RunMode.RUN, from_shell=False)
    except ConfigCompositionException as error:
        appended = _appended(overrides, complaint=str(error))
        if appended == overrides:
            raise
        return _load(name, overrides=appended, roots=roots)
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    names = dict.fromkeys(path for path in [name, *loaded] if not path.startswith("hydra/"))
    found = [_files(path, roots) for path in names]
    return Composition(
        cfg,
        choices=choices,
        files=tuple(first for first, *_ in found),
        hidden=tuple((first, other) for first, *others in found[1:] for other in others),
    )


def _recorded(loader: Any) -> list[str]:
    """The list to which a loader of Hydra's adds the name of each file that it reads."""
    loaded: list[str] = []
    load = loader._load_single_config

    def recording(default: Any, repo: Any) -> Any:
        loaded.append(default.config_path)
        return load(default, repo)

    loader._load_single_config = recording
    return loaded


def _files(name: str, roots: Sequence[Path]) -> list[Path]:
    """The files of that name, the one that counts first."""
    return [file for root in roots if (file := root / f"{name}.yaml").is_file()]


def _appended(overrides: list[str], *, complaint: str) -> list[str]:
    """The overrides, where the choice that Hydra found no default for is an addition."""
    unmatched = re.search(r"Could not (override|delete) '([^']+)'\. No match", complaint)
    if unmatched is None:
        return overrides
    group = unmatched.group(2)
    kept = [line for line in overrides if line != f"~{group}"]
    return [f"+{line}" if line.startswith(f"{group}=") else line for line in kept]


def _escaped(text: str) -> str:
    """Text as it stands between single quotes in an override."""
    return text.replace("\\", "\\\\").replace("'", "\\'")


def _parse(text: str) -> "Override":
    """Parse an override; a bare value with `=`, spaces and the like counts as quoted."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    key, _, value = text.partition("=")
    is_bare = value[:1] not in ("", "[", "{", "'", '"')
    for line in [text, f"{key}='{_escaped(value)}'"] if is_bare else [text]:
        try:
            override = parser.parse_override(line)
        except HydraException:
            continue
        if override.is_sweep_override():
            raise ConfigError(
                f"Override '{text}' gives several values; write {key}=[{value}] for a list,"
                f" or quote a text with commas: {key}='\"{value}\"'."
            )
        return override
    raise ConfigError(f"Override '{text}' is not of the form key=value.")


def _normalized(override: "Override", *, roots: Sequence[Path]) -> str:
    """The override as Hydra wants it: a choice of a group, or add-or-override of a key."""
    line = (override.input_line or "").lstrip("+")
    if override.is_delete():
        return line
    chosen = override.value()
    names = chosen if isinstance(chosen, list) else [chosen]
    is_group = any((root / override.key_or_group).is_dir() for root in roots)
    if not is_group or not all(name is None or isinstance(name, str) for name in names):
        return f"++{line}"
    if chosen is None:
        return f"~{override.key_or_group}"
    for name in names:
        _require(name, group=override.key_or_group, roots=roots)
    return line


def _choices(group: str, roots: Iterable[Path]) -> list[str]:
    """The config files in a group ("" for primary configs), without ".yaml"; empty if no group."""
    folders = [root / group for root in roots]
    pattern = "**/*.yaml" if group else "*.yaml"
    files = [file.relative_to(folder) for folder in folders for file in folder.glob(pattern)]
    return sorted({str(file.with_suffix("")) for file in files})


def _require(choice: str, *, group: str = "", roots: Sequence[Path]) -> None:
    """Refuse a config file that is in none of the folders."""
    choices = _choices(group, roots)
    if choice in choices:
        return
    known = ", ".join(f"`{item}`" for item in choices) or "nothing"
    hint = near(choice, choices) or f"; there is {known}"
    name = f"{group}/{choice}" if group else choice
    searched = ", ".join(str(root) for root in roots)
    raise ConfigNotFoundError(f"Could not find '{name}'{hint} (searched: {searched})", name=name)


def _yaml_sentence(error: Exception) -> str:
    """Name the file and line of a YAML syntax error."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"A config file is not valid YAML: {error}."
    problem = getattr(error, "problem", None) or "syntax error"
    return f"{mark.name}, line {mark.line + 1}, is not valid YAML: {problem}."


def _refined(error: Exception, *, roots: Sequence[Path]) -> ConfigError:
    """Shorten Hydra's message; a file that a defaults list names gets its near names."""
    text = str(error)
    missing = re.search(r"^In '([^']+)': Could not find '([^']+)'", text)
    if missing is None:
        first = text.splitlines()[0].rstrip(".") if text else type(error).__name__
        return ConfigError(f"{first}.")
    source, name = missing.groups()
    group, _, choice = name.rpartition("/")
    try:
        _require(choice, group=group, roots=roots)
    except ConfigNotFoundError as refined:
        return ConfigNotFoundError(f"{refined}, in '{source}.yaml'.", name=name)
    return ConfigNotFoundError(f"Could not find '{name}', in '{source}.yaml'.", name=name)
