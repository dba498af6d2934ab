"""Transcribe the demo's test set with nothing but the archive, and with the network off.

python -m whalesong.demos.transcribe salm_demo.nemo demo_folder
"""

import sys
from pathlib import Path
from typing import Any

import soundfile

import whalesong
from whalesong.core.atomic import atomic_path
from whalesong.demos.processes import block_network
from whalesong.experiment import quiet_libraries

NUM_EXAMPLES = 10


def main(archive: Path, folder: Path) -> None:
    """Write `test.jsonl`, ten examples with audio and `summary.txt` into the demo's folder."""
    block_network()
    quiet_libraries()  # before anything imports NeMo
    from whalesong.inference import write_json_lines

    trained = whalesong.load(archive)
    rows = transcribe(trained, folder / "corpus" / "test", "trained")
    write_json_lines(folder / "test.jsonl", rows)
    write_examples(folder, rows[:NUM_EXAMPLES])
    untrained = whalesong.SALM(trained.cfg, assets=trained.assets).eval()
    copy_pretrained(trained, untrained)
    before = transcribe(untrained, folder / "corpus" / "test", "untrained")
    with atomic_path(folder / "summary.txt") as path:
        path.write_text(summary(rows, before))


def transcribe(model: Any, shar: Path, description: str) -> list[dict[str, Any]]:
    """Rows with id, reference, hypothesis and WER for a shar folder."""
    from whalesong.models.salm.use import generate_rows

    loader = _data(model, shar).test_dataloader()[0]
    return list(generate_rows(model, loader, description=description))


def copy_pretrained(trained: Any, untrained: Any) -> None:
    """Give a new SALM the frozen, pretrained weights, so that only what is trained differs."""
    learned = {name for name, p in trained.named_parameters() if p.requires_grad}
    state = {name: t for name, t in trained.state_dict().items() if name not in learned}
    untrained.load_state_dict(state, strict=False)


def write_examples(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the audio of `rows` as `examples/01.wav`, `02.wav`, ..."""
    from lhotse import CutSet

    wanted = {row["id"]: number for number, row in enumerate(rows, start=1)}
    (folder / "examples").mkdir(exist_ok=True)
    for cut in CutSet.from_shar(in_dir=folder / "corpus" / "test"):
        if cut.id in wanted:
            path = folder / "examples" / f"{wanted[cut.id]:02d}.wav"
            soundfile.write(path, cut.load_audio()[0], cut.sampling_rate)


def summary(rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> str:
    """The outcome in a few lines."""
    return (
        f"WER on {len(rows)} utterances of unseen voices: {100 * rate(rows):.2f} %\n"
        f"WER of the untrained model:              {100 * rate(before):.2f} %\n"
    )


def rate(rows: list[dict[str, Any]]) -> float:
    """Word error rate of all rows together."""
    from whalesong.metrics.text import word_error_rate

    return word_error_rate([r["reference"] for r in rows], [r["hypothesis"] for r in rows])


def _data(model: Any, shar: Path) -> Any:
    from whalesong.data.config import DataConfig
    from whalesong.data.datamodule import LanguageDataModule

    config = DataConfig(
        default_context="Repeat after me:",
        test_ds={"shar_path": str(shar), "batch_size": 50, "num_workers": 0},
    )
    return LanguageDataModule(
        config,
        train_collator=model.parts.train_collator,
        validation_collator=model.parts.validation_collator,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
