"""Using a trained model: evaluate it on test sets, or let it answer a request."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from whalesong.core.archived_model import ArchivedModel, load
from whalesong.core.atomic import atomic_write
from whalesong.core.checkpoint import AtomicCheckpointIO, model_section
from whalesong.core.config.job import JobConfig
from whalesong.core.errors import CheckpointError, ConfigError
from whalesong.core.families import family_of
from whalesong.data.config import DataConfig
from whalesong.data.datamodule import LanguageDataModule, check_inputs


def evaluate(archive: Path, config: DataConfig, job: JobConfig) -> None:
    """Evaluate on each set of `data.test_ds`, write JSON lines, print a summary of each."""
    check_inputs(config, ("test_ds",))
    model = load_model(archive, job)
    data = LanguageDataModule(
        config,
        train_collator=model.parts.train_collator,
        validation_collator=model.parts.validation_collator,
    )
    data.setup("test")
    for name, loader in zip(data.test_names, data.test_dataloader(), strict=True):
        evaluation = model.evaluate(loader, description=name)
        output = _output_file(job, archive, name, len(data.test_names))
        write_json_lines(output, evaluation.rows)
        print(f"{name}: {evaluation.summary}; written to {output}")


def predict(archive: Path, job: JobConfig) -> None:
    """Answer the request of the job; the model prints, or the answers go to a file."""
    model = load_model(archive, job)
    rows = list(model.answer(job.predict))
    if job.predict.output_file is not None:
        write_json_lines(Path(job.predict.output_file), rows)
        print(f"{len(rows)} answers written to {job.predict.output_file}")


def load_model(path: Path, job: JobConfig) -> ArchivedModel:
    """The model in an archive, or in a checkpoint (`*.ckpt`), in evaluation mode.

    Raises:
        ArchiveError, CheckpointError: damaged, unsafe or unknown.
    """
    if path.suffix != ".ckpt":
        return load(path, map_location=device(job))
    checkpoint = AtomicCheckpointIO().load_checkpoint(path, "cpu")
    try:
        family = family_of(model_section(checkpoint, path)["target"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: target: {error}") from error
    return family.load_class().load_from_checkpoint(path, map_location=device(job))


def device(job: JobConfig) -> torch.device:
    """The device that `trainer.accelerator` means for a single process."""
    wants_gpu = job.trainer.accelerator in ("auto", "gpu", "cuda")
    return torch.device("cuda" if wants_gpu and torch.cuda.is_available() else "cpu")


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows whole or not at all."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, need=len(content)) as (sink, _):
        sink.write(content)


def _output_file(job: JobConfig, archive: Path, name: str, num_sets: int) -> Path:
    if job.eval.output_file is None:
        return archive.with_name(f"{archive.stem}-{name}.jsonl")
    output = Path(job.eval.output_file)
    return output if num_sets == 1 else output.with_name(f"{output.stem}-{name}{output.suffix}")
