"""Play unseen captions with nothing but the archive, and with the network off.

python -m whalesong.demos.music_compose music_demo.nemo demo_folder
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import whalesong
from whalesong.core.atomic import atomic_path
from whalesong.demos.processes import block_network
from whalesong.experiment import quiet_libraries

NUM_EXAMPLES = 6
SECONDS = 3.0
"""Length of what is played: the window of the training."""

STEERED = 0.8
CLEARLY = 0.15
"""Above chance; 96 captions have a standard error of 0.05."""

LIMITS = (
    "Measured from the audio alone, for combinations and sentences that were never trained on. "
    "It says\nnothing of how good the music is: listen to it."
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Adherence:
    """How often an attribute that was measured is the one of the caption."""

    followed: float
    chance: float
    """The same with the captions of all other loops: the level of shuffled captions."""
    round_trip: float
    """The same for real loops after the codec: what codec and measurement allow."""


def main(archive: Path, folder: Path) -> None:
    """Write `test.jsonl`, `examples/` and `summary.txt` into the demo's folder."""
    block_network()
    quiet_libraries()  # before anything imports NeMo
    from whalesong.inference import write_json_lines

    model = whalesong.load(archive)
    likelihoods = measure_likelihood(model, folder / "corpus")
    cuts = read_test_set(folder / "corpus" / "test")
    captions = [cut.supervisions[0].text for cut in cuts]
    audio = play(model, captions, [None] * len(captions))
    real = [codec_round_trip(model, cut) for cut in cuts]
    rows = [
        describe(cut, made, original, model.sample_rate)
        for cut, made, original in zip(cuts, audio, real, strict=True)
    ]
    write_json_lines(folder / "test.jsonl", rows)
    write_examples(model, folder / "examples", rows, audio, real)
    with atomic_path(folder / "summary.txt") as path:
        path.write_text(summary(rows, likelihoods))


# -- likelihood -----------------------------------------------------------------------------------


class TextOnly:
    """A collator whose batches have no audio prompts: those of test clips are their own begin.

    Args:
        collator: of the model.
        prompt_ids: conditions that are recordings.
    """

    def __init__(self, collator: Any, prompt_ids: Sequence[str]) -> None:
        self.load = collator.load
        self._collate = collator
        self._nothing = dict.fromkeys(prompt_ids)

    def __call__(self, clips: Sequence[Any]) -> dict[str, Any]:
        """Pad loaded clips into one batch."""
        batch = self._collate(clips)
        return {**batch, "metadata": [{**row, **self._nothing} for row in batch["metadata"]]}


def measure_likelihood(model: Any, corpus: Path) -> dict[str, float]:
    """Negative log-likelihood of a code of the test set, in nats, under the caption alone."""
    from whalesong.models.codec_lm.evaluation.baselines import measure_likelihoods
    from whalesong.models.codec_lm.evaluation.sets import open_shar

    collator = TextOnly(model.parts.validation_collator, model.recording_ids)
    test, train = (
        open_shar(corpus / split, collator, batch_size=16) for split in ("test", "train")
    )
    found = measure_likelihoods(model, test, train=train)
    models = {"trained": found.trained, "untrained": found.untrained, "unigram": found.unigram}
    return {name: values["nll"] for name, values in models.items()}


# -- playing --------------------------------------------------------------------------------------


def read_test_set(folder: Path) -> list[Any]:
    """The cuts of a shar folder."""
    from lhotse import CutSet

    return list(CutSet.from_shar(in_dir=folder))


def play(model: Any, captions: Sequence[str], prompts: Sequence[Any]) -> list[Any]:
    """Waveforms (C, N) for captions and audio prompts (C, n) or None; row n has the seed n."""
    text_id, prompt_id = model.text_ids[0], model.recording_ids[0]
    conditions = [
        {text_id: caption, prompt_id: prompt}
        for caption, prompt in zip(captions, prompts, strict=True)
    ]
    return model.generate_audio(conditions, seconds=SECONDS, seeds=0).audio


def codec_round_trip(model: Any, cut: Any) -> Any:
    """The first seconds of a real loop, encoded and decoded, (C, N)."""
    import torch

    from whalesong.models.codec_lm.evaluation.sets import through_codec

    return through_codec(torch.from_numpy(cut.truncate(duration=SECONDS).load_audio()), model.model)


# -- measuring ------------------------------------------------------------------------------------


def describe(cut: Any, made: Any, real: Any, sample_rate: int) -> Row:
    """What the caption asks for, and what is measured in the audio made for it and in the loop."""
    return {
        "id": cut.id,
        "caption": cut.supervisions[0].text,
        "asked": {kind: cut.custom.get(kind) for kind in ("tempo", "register")},
        "measured": measure(made, sample_rate),
        "real": measure(real, sample_rate),
    }


def measure(audio: Any, sample_rate: int) -> dict[str, str | None]:
    """Class of tempo and register of audio (C, N); None where there is nothing to be heard."""
    from whalesong.corpora.music_captions import register_class, tempo_class
    from whalesong.metrics.music import measure_register, measure_tempo

    samples = audio.mean(dim=0).numpy()
    return {
        "tempo": _class_of(samples, sample_rate, measure_tempo, tempo_class),
        "register": _class_of(samples, sample_rate, measure_register, register_class),
    }


def _class_of(
    samples: Any,
    sample_rate: int,
    measured: Callable[[Any, int], float],
    named: Callable[[float], str],
) -> str | None:
    try:
        return named(measured(samples, sample_rate))
    except ValueError:  # silence, and audio without any period
        return None


def adherence(rows: Sequence[Row], kind: str) -> Adherence:
    """How often `kind` is what the caption asks for; captions that do not tell are left out."""
    rows = [row for row in rows if row["asked"][kind] is not None]
    pairs = [(row, other) for row in rows for other in rows if other is not row]
    return Adherence(
        followed=_share([row["measured"][kind] == row["asked"][kind] for row in rows]),
        chance=_share([row["measured"][kind] == other["asked"][kind] for row, other in pairs]),
        round_trip=_share([row["real"][kind] == row["asked"][kind] for row in rows]),
    )


def _share(agreed: Sequence[bool]) -> float:
    return sum(agreed) / max(len(agreed), 1)


# -- writing --------------------------------------------------------------------------------------


def write_examples(
    model: Any, folder: Path, rows: Sequence[Row], audio: Sequence[Any], real: Sequence[Any]
) -> None:
    """Write `01_text.wav`, `01_prompted.wav`, `01_real.wav` and their spectrograms, and so on.

    `prompted` has the same caption and seed with another loop, the last but n, as audio prompt.
    """
    count = min(NUM_EXAMPLES, len(rows) // 2)
    prompts = [real[-1 - number] for number in range(count)]
    prompted = play(model, [row["caption"] for row in rows[:count]], prompts)
    for number in range(count):
        versions = {"text": audio[number], "prompted": prompted[number], "real": real[number]}
        for name, version in versions.items():
            write_example(folder / f"{number + 1:02d}_{name}", version, model.sample_rate)
        write_example(folder / f"{number + 1:02d}_prompt", prompts[number], model.sample_rate)


def write_example(stem: Path, audio: Any, sample_rate: int) -> None:
    """Write audio (C, N) as `<stem>.wav`, and its spectrogram as `<stem>.png`."""
    from matplotlib.image import imsave

    from whalesong.sound.samples import spectrogram_image
    from whalesong.sound.wav import write_wav

    write_wav(stem.with_suffix(".wav"), audio, sample_rate)
    imsave(stem.with_suffix(".png"), spectrogram_image(audio, sample_rate))


def summary(rows: Sequence[Row], likelihood: dict[str, float]) -> str:
    """The outcome in a few lines."""
    found = {kind: adherence(rows, kind) for kind in ("tempo", "register")}
    lines = [f"{len(rows)} unseen captions, text alone:"]
    for kind, share in found.items():
        lines.append(
            f"{kind:<9}follows the caption in {100 * share.followed:5.1f} %, shuffled captions "
            f"{100 * share.chance:.1f} %, real loops after the codec {100 * share.round_trip:.1f} %"
        )
    values = ", ".join(f"{name} {value:.3f}" for name, value in likelihood.items())
    lines.append(f"NLL of a held-out code in nats: {values}")
    verdicts = "; ".join(f"{kind} {verdict(share)}" for kind, share in found.items())
    return "\n".join([*lines, f"The captions: {verdicts}.", LIMITS, ""])


def verdict(share: Adherence) -> str:
    """What the shares mean, in words."""
    if share.followed >= STEERED:
        return "is steered by the text"
    if share.followed >= share.chance + CLEARLY:
        return "is steered in part"
    return "is not steered: it is right as often as with shuffled captions"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
