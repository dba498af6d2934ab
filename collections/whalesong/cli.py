"""The command `xlm` and the frame of the scripts; a job's heavy imports come with the job."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whalesong.core.commands import CommandLine, parse_command_line, run_command
from whalesong.core.config.job import JobConfig, JobType, check_job
from whalesong.core.errors import ConfigError
from whalesong.core.external import Command, ComposedJob, Registry, activate_for, discover
from whalesong.core.external.jobs import command_of, refuse_taken_names
from whalesong.core.external.jobs import run as run_custom
from whalesong.core.external.listing import listing
from whalesong.core.schema import json_schema

if TYPE_CHECKING:
    from omegaconf import DictConfig

_DESCRIPTION = "Train, evaluate and use speech, audio and text language models from YAML."

_EXAMPLES = """\
job types:
  job_type=train          train; one .nemo comes out
  job_type=eval           measure eval.ckpt_path=FILE on the test sets
  job_type=predict        generate with predict.ckpt_path=FILE (also: job_type=generate)
  job_type=prepare_data   look at the data of an experiment and write it as files
  job_type=list           show all models, where they are, and which of them are broken
  job_type=inspect        show what model=FILE holds (.nemo or .ckpt), without loading it
  job_type=NAME           a command of an external model (its configs/commands.yaml)

keys of a job:
  job_name=NAME                 names the run's log folder
  experiment=NAME               a file of conf/experiment: model, data and trainer together
  model=NAME model_type=NAME    a text model: its network, and its loss and predictor
  datamodule=NAME               its data (default: star_easy_ and the model type)
  debug=overfit|fast_dev_run|small_data|profile
                                a quick trial; several as debug=[overfit,profile]
  resume=true                   continue the run of that name

examples:
  xlm job_type=train job_name=first experiment=star_easy_arlm
  xlm job_type=train job_name=first experiment=star_easy_arlm debug=overfit trainer.max_steps=100
  xlm job_type=train model=mlm model_type=mlm datamodule=star_mini_mlm
  xlm job_type=eval experiment=star_easy_arlm eval.ckpt_path=first.nemo
  xlm job_type=predict predict.ckpt_path=first.nemo 'predict.prompts=["0 1 1 2 0 3 0 2"]'
  xlm job_type=inspect model=first.nemo
  xlm job_type=train job_name=first experiment=salm_demo
  xlm --cfg job job_type=train experiment=salm_demo
  xlm --cfg schema model.target=SALM > whalesong.schema.json

external models:
  xlm-scaffold my_awesome_model writes one that trains. Models are found in xlm_models.json files
  of the working directory, of xlm-models/ and of the folders of XLM_MODELS_PATH, in the packages
  of XLM_MODELS_PACKAGES (both separated by colons), and by entry points "whalesong.models".

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

    if line.job_type == "list" and job_type is None and line.printed is None:
        _list_models(discover())
        return
    if line.job_type == "inspect" and job_type is None and line.printed is None:
        from whalesong import inspection

        inspection.run(line.overrides)
        return
    job = line.compose_job(script_dir=script_dir)
    cfg = job.cfg
    if job_type is not None:
        cfg.job_type = job_type
    if target is not None and OmegaConf.select(cfg, "model.target") is None:
        OmegaConf.update(cfg, "model.target", target)
    if line.printed == "job":
        print(OmegaConf.to_yaml(cfg), end="")
    elif line.printed == "schema":
        print(json.dumps(_schema(cfg), indent=2))
    elif (command := _custom(job)) is not None:
        run_custom(command, cfg, job.registry)
    else:
        checked = check_job(cfg)
        refuse_taken_names(job)
        activate_for(cfg, registry=job.registry, composed=True)
        _start(job, checked)


def _custom(job: ComposedJob) -> Command | None:
    """The command of a model that the job type names, if it is no built-in one."""
    from omegaconf import OmegaConf

    if "job_type" not in job.cfg or OmegaConf.is_missing(job.cfg, "job_type"):
        return None
    return command_of(job.cfg.job_type, job.registry)


def _list_models(registry: Registry) -> None:
    """Print the table of all models; names that two models have make it an error."""
    print(listing(registry))
    for name in registry.conflicts:
        registry.check_conflict(name)


def _schema(cfg: "DictConfig") -> dict[str, Any]:
    """The JSON Schema of all sections, for the family whose model the job has."""
    from pydantic import create_model

    from whalesong.core.families import schemas_of
    from whalesong.data.config import DataConfig

    schemas = schemas_of(cfg)
    sections: dict[str, Any] = {name: (schema, ...) for name, schema in schemas.items()}
    sections["data"] = (DataConfig, DataConfig() if "datamodule" in schemas else ...)
    return json_schema(create_model("Job", __base__=JobConfig, **sections))


def _start(job: ComposedJob, checked: JobConfig) -> None:
    """Import what the job needs, and do it."""
    if checked.job_type == "list":
        _list_models(job.registry)
    elif checked.job_type == "inspect":
        raise ConfigError("`job_type=inspect` stands on the command line, with model=FILE.")
    elif checked.job_type == "prepare_data":
        from whalesong import preparation

        preparation.prepare(job.cfg, checked, name=job.datamodule)
    else:
        from whalesong import experiment

        experiment.run(job.cfg)


if __name__ == "__main__":
    main()
