"""The frame of every command: its options, and how errors end it."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from whalesong.core.atomic import full_disk_named
from whalesong.core.errors import UserError
from whalesong.core.external import ComposedJob, compose_job
from whalesong.core.stopping import STOP, Stopped

if TYPE_CHECKING:
    from omegaconf import DictConfig

TRACEBACK_VARIABLE = "WHALESONG_TRACEBACK"
"""Set this environment variable to 1 to see where a user's error was found."""


@dataclass(frozen=True)
class CommandLine:
    """A parsed command line, common to `xlm` and the scripts."""

    config_name: str
    config_path: Path | None
    overrides: list[str]
    printed: Literal["job", "schema"] | None

    @property
    def job_type(self) -> str | None:
        """The job type among the overrides; the composed config may have another one."""
        values = [line.lstrip("+").partition("=") for line in self.overrides]
        return next((value for key, _, value in reversed(values) if key == "job_type"), None)

    def compose(self, *, script_dir: Path | None = None) -> "DictConfig":
        """Compose the config that this command line asks for."""
        return self.compose_job(script_dir=script_dir).cfg

    def compose_job(self, *, script_dir: Path | None = None) -> ComposedJob:
        """Compose that config, with what is known of its models."""
        return compose_job(
            self.config_name,
            config_path=self.config_path,
            overrides=self.overrides,
            script_dir=script_dir,
        )


def parse_command_line(
    argv: Sequence[str] | None,
    *,
    prog: str,
    default_config: str,
    description: str,
    epilog: str = "",
) -> CommandLine:
    """Read the options and overrides; `--help` prints them and exits.

    Args:
        argv: the arguments, or None for those of the process.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="set or add a YAML key")
    parser.add_argument(
        "--config-path",
        "-cp",
        type=Path,
        metavar="FOLDER",
        help="own config folder, in front of the packaged one; a relative one is looked up from"
        " the working directory, then from the script (default: conf)",
    )
    parser.add_argument(
        "--config-name",
        "-cn",
        default=default_config,
        metavar="NAME",
        help="YAML file to start from (default: %(default)s)",
    )
    parser.add_argument(
        "--cfg",
        choices=["job", "schema"],
        help="print the composed config, or the JSON Schema with which editors complete it,"
        " instead of running the job",
    )
    options = parser.parse_intermixed_args(argv)
    return CommandLine(
        config_name=options.config_name,
        config_path=options.config_path,
        overrides=options.overrides,
        printed=options.cfg,
    )


@contextmanager
def _user_errors_end_the_process() -> Iterator[None]:
    """Turn a user's error into its line, notes and exit code, a signal into its exit code."""
    try:
        with STOP.answered(), full_disk_named():
            yield
    except Stopped as stop:
        if not stop.told:
            print(f"Stopped by {stop.reason}.", file=sys.stderr)
        raise
    except UserError as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            raise
        print(f"{error.title}: {error}", file=sys.stderr)
        for note in getattr(error, "__notes__", ()):
            print(note, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("Stopped by SIGINT.", file=sys.stderr)
        raise SystemExit(130) from None


def run_command(command: Callable[[], None]) -> None:
    """Run a command; what a user can mend ends it with one line, a bug keeps its traceback."""
    with _user_errors_end_the_process():
        command()
