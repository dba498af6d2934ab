"""The command `xlm` and the frame of the scripts; a job's heavy imports come with the job."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whalesong.core.commands import CommandLine, parse_command_line, run_command
from whalesong.core.job_config import JobConfig, JobType, check_job
from whalesong.core.schema import json_schema

if TYPE_CHECKING:
    from omegaconf import DictConfig

_DESCRIPTION = "Train, evaluate and use speech and audio language models from YAML."

_EXAMPLES = """\
keys of a job:
  job_type=train|eval|predict   what to do
  job_name=NAME                 names the run's log folder
  experiment=NAME               a file of conf/experiment: model, data and trainer together
  debug=overfit|fast_dev_run    a quick trial; several as debug=[overfit,...]
  resume=true                   continue the run of that name
  eval.ckpt_path=FILE           what to evaluate (.nemo or checkpoint)
  predict.ckpt_path=FILE        what to generate with

examples:
  xlm job_type=train job_name=first experiment=salm_demo
  xlm job_type=train job_name=first experiment=salm_demo debug=overfit trainer.max_steps=100
  xlm job_type=eval job_name=first experiment=salm_demo eval.ckpt_path=first.nemo
  xlm --cfg job job_type=train experiment=salm_demo
  xlm --cfg schema model.target=SALM > whalesong.schema.json

Any key of the YAML can be set this way, also one that the file does not have yet.
Own YAML is taken from ./conf or from --config-path. WHALESONG_TRACEBACK=1 shows tracebacks.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run `xlm`: compose a job from YAML and do it."""
    line = parse_command_line(
        argv, prog="xlm", default_config="config", description=_DESCRIPTION, epilog=_EXAMPLES
    )
    run_command(lambda: _run_job(line))


def main_script(
    script_file: str,
    *,
    job_type: JobType,
    default_config: str,
    target: str,
    epilog: str = "",
    argv: Sequence[str] | None = None,
) -> None:
    """Run a script such as `examples/speechlm2/salm_train.py`: one job of one model family.

    Args:
        script_file: the script's `__file__`; a relative `--config-path` may lie beside it.
        job_type: what the script does.
        default_config: the config that is taken without `--config-name`.
        target: the model's class, where the config names none in `model.target`.
        epilog: what `--help` says at the end.
        argv: the arguments, or None for those of the process.
    """
    script = Path(script_file).resolve()
    line = parse_command_line(
        argv,
        prog=script.name,
        default_config=default_config,
        description=f"Job type {job_type} of {target.rpartition('.')[2]}.",
        epilog=epilog,
    )
    run_command(lambda: _run_job(line, script_dir=script.parent, job_type=job_type, target=target))


def _run_job(
    line: CommandLine,
    *,
    script_dir: Path | None = None,
    job_type: JobType | None = None,
    target: str | None = None,
) -> None:
    """Compose and check a job's config, then run it, or print what `--cfg` asks for."""
    from omegaconf import OmegaConf

    cfg = line.compose(script_dir=script_dir)
    if job_type is not None:
        cfg.job_type = job_type
    if target is not None and OmegaConf.select(cfg, "model.target") is None:
        OmegaConf.update(cfg, "model.target", target)
    if line.printed == "job":
        print(OmegaConf.to_yaml(cfg), end="")
    elif line.printed == "schema":
        print(json.dumps(_schema(cfg), indent=2))
    else:
        check_job(cfg)
        _start(cfg)


def _schema(cfg: "DictConfig") -> dict[str, Any]:
    """The JSON Schema of all sections, for the family that `model.target` names."""
    from omegaconf import OmegaConf
    from pydantic import create_model

    from whalesong.core.families import family_of
    from whalesong.data.config import DataConfig

    sections: dict[str, Any] = {"data": (DataConfig, ...)}
    if (target := OmegaConf.select(cfg, "model.target")) is not None:
        sections["model"] = (family_of(target).load_schema(), ...)
    return json_schema(create_model("Job", __base__=JobConfig, **sections))


def _start(cfg: "DictConfig") -> None:
    """Import what the job needs, and do it."""
    from whalesong import experiment

    experiment.run(cfg)


if __name__ == "__main__":
    main()
