"""A corpus of spoken smart-home commands, synthesized on the spot and written as lhotse shar."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lhotse import MonoCut, SupervisionSegment
from lhotse.shar import SharWriter
from tqdm.auto import tqdm

from whalesong.core.atomic import atomic_folder
from whalesong.corpora.espeak import Synthesizer
from whalesong.corpora.grammar import Split, sample_sentences
from whalesong.corpora.recordings import recording_in_memory
from whalesong.corpora.splits import split_counts

ACCENTS: tuple[str, ...] = ("en-us", "en-us-nyc", "en-gb-x-rp", "en-029")
"""espeak-ng voices that all splits share."""

MIN_DURATION_S = 1.0
MAX_DURATION_S = 4.0


@dataclass(frozen=True)
class Speakers:
    """The manners of speaking in one split; any accent goes with any of them."""

    variants: tuple[str, ...]
    """espeak-ng voice variants."""

    rates_wpm: range
    """Speeds in words per minute."""

    pitches: range
    """Base pitches on espeak-ng's scale of 0 to 99."""


SPEAKERS: dict[Split, Speakers] = {
    "train": Speakers(
        variants=tuple(
            "f1 f3 f5 m1 m2 m4 m6 m7 m8 Alex Alicia Andrea Annie Denis Diogo Gene Henrique Hugo "
            "Lee Mike Nguyen adam antonio benjamin boris david ed grandma grandpa gustave ian john "
            "marcelo max michel miguel norbert pablo paul pedro quincy rob robert sandro shelby "
            "travis".split()
        ),
        rates_wpm=range(130, 211, 10),
        pitches=range(20, 81, 10),
    ),
    "validation": Speakers(
        variants=("f4", "m5", "Michael", "belinda"),
        rates_wpm=range(133, 211, 10),
        pitches=range(23, 81, 10),
    ),
    "test": Speakers(
        variants=("f2", "m3", "Andy", "linda", "edward", "Mario", "aunty", "victor"),
        rates_wpm=range(136, 211, 10),
        pitches=range(26, 81, 10),
    ),
}
"""Who speaks in each split: no two splits share a variant, a rate or a pitch."""


@dataclass(frozen=True)
class SplitSummary:
    """What was written for one split."""

    num_cuts: int
    duration_s: float
    num_speakers: int


def write_spoken_commands(
    folder: str | Path,
    *,
    num_train: int,
    num_validation: int,
    num_test: int,
    seed: int = 0,
    shard_size: int = 500,
    sample_rate: int = 16000,
) -> dict[Split, SplitSummary]:
    """Write `folder/{train,validation,test}` as lhotse shar with `cuts` and flac `recording`.

    Each cut has one supervision with text, speaker (`accent+variant`), language and, as custom
    fields, `rate_wpm` and `pitch`. Utterances last 1 to 4 seconds. No test or validation voice
    variant, rate, pitch or sentence occurs in training. Equal arguments write equal cuts.

    Args:
        folder: a new or empty folder; it appears only when all of it is written.
        num_train: how many training utterances.
        num_validation: how many validation utterances.
        num_test: how many test utterances.
        seed: what sentences and voices are drawn from.
        shard_size: utterances per shard.
        sample_rate: of the recordings, in Hz.

    Raises:
        ConfigError: if a count is below 1.
        DataError: if `folder` is not empty or espeak-ng cannot be loaded.
    """
    counts = split_counts(
        num_train=num_train,
        num_validation=num_validation,
        num_test=num_test,
        shard_size=shard_size,
    )
    synthesizer = Synthesizer(sample_rate=sample_rate)
    with atomic_folder(folder) as partial:
        return {
            split: _write_split(
                partial / split,
                synthesize_commands(synthesizer, split=split, count=count, seed=seed),
                count=count,
                shard_size=shard_size,
            )
            for split, count in counts.items()
        }


def synthesize_commands(
    synthesizer: Synthesizer, *, split: Split, count: int, seed: int
) -> Iterator[MonoCut]:
    """Synthesize the utterances of one split as cuts with their audio in memory."""
    rng = random.Random(f"{split} {seed}")
    for index, text in enumerate(sample_sentences(seed, count, split=split)):
        yield _speak_command(synthesizer, text, cut_id=f"{split}-{index:06d}", split=split, rng=rng)


def draw_manner(rng: random.Random, *, split: Split) -> dict[str, str | int]:
    """Arguments of `Synthesizer.speak` for one speaker of a split."""
    speakers = SPEAKERS[split]
    return {
        "voice": rng.choice(ACCENTS),
        "variant": rng.choice(speakers.variants),
        "rate_wpm": rng.choice(speakers.rates_wpm),
        "pitch": rng.choice(speakers.pitches),
    }


def _speak_command(
    synthesizer: Synthesizer, text: str, *, cut_id: str, split: Split, rng: random.Random
) -> MonoCut:
    while True:
        manner = draw_manner(rng, split=split)
        waveform = synthesizer.speak(text, **manner)
        # A long sentence in a slow voice is spoken again by someone else.
        if MIN_DURATION_S <= waveform.size / synthesizer.sample_rate <= MAX_DURATION_S:
            break
    recording = recording_in_memory(waveform, cut_id, synthesizer.sample_rate)
    supervision = SupervisionSegment(
        id=cut_id,
        recording_id=cut_id,
        start=0.0,
        duration=recording.duration,
        text=text,
        language="en",
        speaker=f"{manner['voice']}+{manner['variant']}",
        custom={key: manner[key] for key in ("rate_wpm", "pitch")},
    )
    return MonoCut(
        id=cut_id,
        start=0.0,
        duration=recording.duration,
        channel=0,
        recording=recording,
        supervisions=[supervision],
    )


def _write_split(
    folder: Path, cuts: Iterator[MonoCut], *, count: int, shard_size: int
) -> SplitSummary:
    folder.mkdir()
    duration_s = 0.0
    speakers = set()
    with SharWriter(str(folder), fields={"recording": "flac"}, shard_size=shard_size) as writer:
        for cut in tqdm(cuts, total=count, desc=f"Speaking {folder.name}", unit="cut"):
            writer.write(cut)
            duration_s += cut.duration
            speakers.add(cut.supervisions[0].speaker)
    return SplitSummary(num_cuts=count, duration_s=duration_s, num_speakers=len(speakers))
