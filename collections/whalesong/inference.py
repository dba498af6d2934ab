"""Using a trained model: evaluate it on a test set, or ask it about audio files."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from whalesong.core.archived_model import load
from whalesong.core.atomic import atomic_write
from whalesong.core.job_config import JobConfig
from whalesong.core.language_model import LanguageModelPT
from whalesong.data.config import DataConfig
from whalesong.data.datamodule import LanguageDataModule, check_inputs
from whalesong.metrics.text import word_edits, word_error_rate


def evaluate(archive: Path, config: DataConfig, job: JobConfig) -> None:
    """Generate for every example of `data.test_ds`, write JSON lines, print the word error rate."""
    check_inputs(config, ("test_ds",))
    model = load(archive, map_location=device(job))
    data = LanguageDataModule(
        config,
        train_collator=model.parts.train_collator,
        validation_collator=model.parts.validation_collator,
    )
    data.setup("test")
    for name, loader in zip(data.test_names, data.test_dataloader(), strict=True):
        rows = list(generate_rows(model, loader, description=name))
        output = _output_file(job, archive, name, len(data.test_names))
        write_json_lines(output, rows)
        rate = word_error_rate([r["reference"] for r in rows], [r["hypothesis"] for r in rows])
        print(f"{name}: WER {100 * rate:.2f} % over {len(rows)} examples; written to {output}")


def generate_rows(
    model: LanguageModelPT, loader: Iterable[Any], *, description: str = "generating"
) -> Iterator[dict[str, Any]]:
    """One row for each example of a loader: id, reference, hypothesis and its own WER."""
    for batch in tqdm(loader, desc=description, unit="batch"):
        batch = model.transfer_batch_to_device(batch, model.device, 0)
        preds = model.parts.predictor.predict(batch)
        for row in model.parts.predictor.to_dict(batch, preds):
            edits = word_edits([row["reference"]], [row["hypothesis"]])
            yield {**row, "wer": round(edits.rate, 4)}


def predict(archive: Path, job: JobConfig) -> None:
    """Answer prompts about audio files; the answers go to the terminal or to a file."""
    model = load(archive, map_location=device(job))
    stream = job.predict.output_file is None
    rows = list(_answers(model, job.predict.audio, job.predict.prompts, stream=stream))
    if job.predict.output_file is not None:
        write_json_lines(Path(job.predict.output_file), rows)
        print(f"{len(rows)} answers written to {job.predict.output_file}")


def _answers(
    model: Any, audio: list[str], prompts: list[str], *, stream: bool
) -> Iterator[dict[str, Any]]:
    """Ask one by one, so that each answer can be read while it is produced."""
    count = max(len(audio), len(prompts))
    for index in range(count):
        prompt = prompts[index % len(prompts)] if prompts else ""
        turn: dict[str, Any] = {"role": "user", "content": prompt}
        if audio:
            turn["audio"] = [audio[index]]
            if model.audio_locator_tag not in prompt:
                turn["content"] = f"{prompt} {model.audio_locator_tag}".strip()
        row = {"audio": audio[index] if audio else None, "prompt": prompt}
        if stream:
            print(f"{audio[index] if audio else prompt}: ", end="", flush=True)
        yield {**row, "answer": model.generate([[turn]], on_text=_printer(stream))[0]}
        if stream:
            print()


def _printer(stream: bool) -> Any:
    return (lambda row, text: print(text, end="", flush=True)) if stream else None


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
