"""The command `xlm-scaffold`."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from whalesong.core.commands import run_command
from whalesong.core.config.compose import packaged_conf
from whalesong.core.external import discover
from whalesong.core.scaffold.names import check_name
from whalesong.core.scaffold.writing import Scaffold, plan, write

_DESCRIPTION = "Write a new language model: a package, its YAML and a test. It trains as it is."

_EXAMPLES = """\
examples:
  xlm-scaffold my_awesome_model
  xlm-scaffold my_awesome_model --dry-run
  xlm-scaffold my_awesome_model --output-dir xlm-models

It is registered in xlm_models.json of the same folder. Nothing that exists is overwritten.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `xlm-scaffold`."""
    options = _parser().parse_args(argv)
    run_command(lambda: _run(options.name, options.output_dir, is_trial=options.dry_run))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xlm-scaffold",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", help="name of the model and its package: lower-case, as in PEP 8")
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="where the model's folder and xlm_models.json go (default: the working directory)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only list what would be written")
    return parser


def _run(name: str, folder: Path, *, is_trial: bool) -> None:
    registry = discover()
    check_name(name, known=registry.models)
    scaffold = plan(name, folder, config_roots=[packaged_conf(), *registry.config_roots()])
    if not is_trial:
        write(scaffold)
    print("\n".join(_listing(scaffold, is_trial=is_trial)))
    if not is_trial:
        print("\n".join(["", "Next:", *(f"  {line}" for line in _next_steps(scaffold, folder))]))


def _listing(scaffold: Scaffold, *, is_trial: bool) -> list[str]:
    paths = [scaffold.root / path for path in scaffold.files]
    entry = scaffold.registration
    note = "" if entry.is_new else f"  (entry '{scaffold.name}' added)"
    title = "Would write" if is_trial else "Wrote"
    return [f"{title}:", *(f"  {path}" for path in paths), f"  {entry.path}{note}"]


def _next_steps(scaffold: Scaffold, folder: Path) -> list[str]:
    name = scaffold.name
    steps = [
        f"xlm job_type=train job_name=my_model_test experiment=star_easy_{name} debug=overfit",
        f"xlm job_type=train job_name={name} experiment=star_easy_{name}",
        f"python -m pytest {shlex.quote(str(scaffold.root / 'tests'))}",
        f"edit the files of {scaffold.root / name}: each TODO names what to change",
    ]
    return steps if _is_searched(folder) else [_search_there(folder), *steps]


def _is_searched(folder: Path) -> bool:
    listed = os.environ.get("XLM_MODELS_PATH", "").split(":")
    searched = [".", "xlm-models", *filter(None, listed)]
    return folder.resolve() in [Path(path).resolve() for path in searched]


def _search_there(folder: Path) -> str:
    behind = ":$XLM_MODELS_PATH" if os.environ.get("XLM_MODELS_PATH") else ""
    return f"export XLM_MODELS_PATH={shlex.quote(str(folder.resolve()))}{behind}"


if __name__ == "__main__":
    main()
