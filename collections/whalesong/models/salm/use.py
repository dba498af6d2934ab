"""Using a trained SALM: rows of an evaluation, and answers about audio files."""

from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from whalesong.core.config.job import PredictConfig
from whalesong.core.language_model import LanguageModelPT
from whalesong.metrics.text import word_edits


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


def answer(model: Any, request: PredictConfig) -> Iterator[dict[str, Any]]:
    """Ask one by one; without `output_file` each answer is printed while it is produced."""
    stream = request.output_file is None
    for index in range(max(len(request.audio), len(request.prompts))):
        prompt = request.prompts[index % len(request.prompts)] if request.prompts else ""
        audio = request.audio[index] if request.audio else None
        if stream:
            print(f"{audio or prompt}: ", end="", flush=True)
        turn = _turn(prompt, audio, model.audio_locator_tag)
        text = model.generate([[turn]], on_text=_print_piece if stream else None)[0]
        if stream:
            print()
        yield {"audio": audio, "prompt": prompt, "answer": text}


def _turn(prompt: str, audio: str | None, tag: str) -> dict[str, Any]:
    """The user's turn; the tag goes behind a prompt that does not place it."""
    if audio is None:
        return {"role": "user", "content": prompt}
    content = prompt if tag in prompt else f"{prompt} {tag}".strip()
    return {"role": "user", "content": content, "audio": [audio]}


def _print_piece(row: int, text: str) -> None:
    print(text, end="", flush=True)
