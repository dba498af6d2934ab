"""Check manifests, durations, codes, forward pass, first loss and gradients before a training.

    python examples/audiolm/validate.py --config-path=conf --config-name=audiolm \
      data.train_ds.shar_path=path/to/train data.validation_ds.datasets.val.shar_path=path/to/val

Takes the arguments of `train.py`. Prints a line for each check; the exit code is 1 when one of them
finds something wrong.
"""

from pathlib import Path

from omegaconf import OmegaConf

from whalesong import checks, experiment
from whalesong.core.commands import CommandLine, parse_command_line, run_command
from whalesong.core.config.job import check_job


def check(line: CommandLine) -> None:
    """Compose the config as `train.py` does and run the checks."""
    cfg = line.compose(script_dir=Path(__file__).resolve().parent)
    cfg.job_type = "train"
    job = check_job(cfg)
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    _, data = checks.check_training(cfg)
    experiment.quiet_libraries()
    import torch

    from whalesong.models.audiolm.validate import check_training

    use_gpu = torch.cuda.is_available() and job.trainer.accelerator != "cpu"
    device = "cuda" if use_gpu else "cpu"
    wrong = 0
    for finding in check_training(cfg.model, data, seed=job.seed or 0, device=device):
        print(finding)
        wrong += finding.is_wrong
    if wrong:
        raise SystemExit(1)
    print("Next: python examples/audiolm/train.py with the same arguments")


if __name__ == "__main__":
    arguments = parse_command_line(
        None, prog="validate.py", default_config="audiolm", description=__doc__.splitlines()[0]
    )
    run_command(lambda: check(arguments))
