"""Measure and continue unseen melodies with nothing but the archive, and with the network off.

python -m whalesong.demos.audiolm_continue audiolm_demo.nemo demo_folder
"""

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import whalesong
from whalesong.core.atomic import atomic_path
from whalesong.demos.processes import block_network
from whalesong.experiment import quiet_libraries

NUM_EXAMPLES = 6
FIRST_FRAMES = 50
"""A second."""

LINE_WIDTH = 100
"""Of the summary."""

BARS = {"ar_top1": 0.5, "nar_top1": 0.4}
"""What the specification asks of each half."""

Shares = Sequence[float | None]
"""Of the codes of each quantizer."""

ROWS: Mapping[str, tuple[str, str]] = {
    "top1": (
        "top-1, true codes before and below",
        "how well a single code is foretold; errors cannot add up here, so it promises no long "
        "continuation.",
    ),
    "top10": (
        "top-10 of 128, likewise",
        "the truth is among the ten likeliest codes; trainers of such models log this as accuracy, "
        "but only one code is played.",
    ),
    "wrong": (
        "top-1 behind another melody's prompt",
        "what the target's own past suffices for; what is missing to the first row, the prompt "
        "gives.",
    ),
    "repeat": (
        "baseline: the code before, again",
        "how slowly codes change; it knows neither notes nor motifs.",
    ),
    "bigram": (
        "baseline: what mostly follows that code",
        "local habit, learned from the training set; more than this needs a longer memory.",
    ),
    "level below": (
        "baseline: what mostly stands above the code below",
        "how the codebooks hang together; more than this needs other frames.",
    ),
    "loop copy": (
        "baseline: the prompt's loop, played on",
        "the task is solved by who knows that it is a loop; the model has to find that out, which "
        "checks learning and says nothing of real music.",
    ),
    "first": (
        "continued freely, first second",
        "greedy, from the prompt alone: a wrong note shifts all that follows, though it may sound "
        "well.",
    ),
    "all": (
        "continued freely, all of it",
        "the same to the end, where errors have added up.",
    ),
    "free_wrong": (
        "continued freely from another melody's prompt",
        "how much agrees by chance; the model follows its prompt as far as the row before is above "
        "this.",
    ),
}
"""Rows of the table: what is measured, and what it shows and does not show."""


def main(archive: Path, folder: Path) -> None:
    """Write `values.json`, `examples/` and `summary.txt` into the demo's folder."""
    block_network()
    quiet_libraries()  # before anything imports NeMo
    model = whalesong.load(archive)
    test, train = (read_batches(model, folder / "corpus" / split) for split in ("test", "train"))
    clips = clips_of(test)
    made = continue_greedily(model, clips)
    measured = measure_accuracy(model, test)
    table = {
        **measured,
        **measure_baselines(clips, train, codebook_size=model.model.lm.codebook_size),
        **match_continuations(clips, made.codes),
    }
    halves = {key: half_mean(table["top1"], key) for key in BARS}
    values = {"num_clips": len(clips), "halves": halves, "table": table}
    write_examples(model, folder / "examples", clips, made.audio)
    for name, text in (("values.json", json.dumps(values)), ("summary.txt", summary(values))):
        with atomic_path(folder / name) as path:
            path.write_text(text)


# -- reading --------------------------------------------------------------------------------------


def read_batches(model: Any, folder: Path) -> list[dict[str, Any]]:
    """All clips of a shar folder in batches of the validation collator, in order."""
    from whalesong.data.datamodule import build_loader

    section = {"shar_path": str(folder), "batch_size": 16, "shuffle": False}
    return list(build_loader(section, model.parts.validation_collator, path="data.test_ds"))


def clips_of(batches: Sequence[dict[str, Any]]) -> list[tuple[Any, int]]:
    """Codes (K, F) of each clip, and the first frame of its target."""
    return [
        (codes[:, :count], begin)
        for batch in batches
        for codes, count, begin in zip(
            batch["codes"],
            batch["codes_lens"].tolist(),
            batch["target_span"][:, 0].tolist(),
            strict=True,
        )
    ]


def with_wrong_prompts(batches: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The batches with the prompt of the clip before in front of each target."""
    import torch

    codes = torch.cat([batch["codes"] for batch in batches])
    others = codes.roll(1, 0).split([len(batch["codes"]) for batch in batches])
    frames = torch.arange(codes.shape[2])
    for batch, other in zip(batches, others, strict=True):
        is_prompt = (frames < batch["target_span"][:, :1])[:, None]
        yield {**batch, "codes": torch.where(is_prompt, other, batch["codes"])}


# -- measuring ------------------------------------------------------------------------------------


def measure_accuracy(model: Any, batches: Sequence[dict[str, Any]]) -> dict[str, Shares]:
    """Top-1 and top-10 accuracy with the true codes before and below, and behind wrong prompts."""
    right = model.evaluate(batches, description="accuracy").rows[0]
    wrong_batches = list(with_wrong_prompts(batches))
    wrong = model.evaluate(wrong_batches, description="wrong prompts").rows[0]
    return {
        "top1": by_quantizer(right, "top1"),
        "top10": by_quantizer(right, "top10"),
        "wrong": by_quantizer(wrong, "top1"),
    }


def by_quantizer(values: Mapping[str, float], kind: str) -> Shares:
    """The accuracies `ar_<kind>_q0`, `nar_<kind>_q1` and so on in the order of quantizers."""
    found = {
        int(key.rpartition("_q")[2]): value for key, value in values.items() if f"_{kind}_q" in key
    }
    return [found[quantizer] for quantizer in sorted(found)]


def measure_baselines(
    clips: Sequence[tuple[Any, int]], train: Sequence[dict[str, Any]], *, codebook_size: int
) -> dict[str, Shares]:
    """What can be foretold without a model."""
    from whalesong.metrics.code_baselines import CodeBaselines

    known = [codes for codes, _ in clips_of(train)]
    return CodeBaselines(known, codebook_size=codebook_size).accuracies(clips)


def half_mean(top1: Shares, key: str) -> float:
    """Top-1 accuracy of the first half, or that of the other over its quantizers."""
    shares = top1[:1] if key == "ar_top1" else top1[1:]
    return sum(shares) / len(shares)


# -- continuing -----------------------------------------------------------------------------------


def continue_greedily(model: Any, clips: Sequence[tuple[Any, int]]) -> Any:
    """Continue the prompts of clips (K, F) to their end; codes and audio begin with the prompt."""
    prompts = [codes[:, :begin] for codes, begin in clips]
    seconds = [(codes.shape[1] - begin) / model.model.frame_rate for codes, begin in clips]
    return model.model.generate_audio(
        prompts, seconds=seconds, seeds=0, temperature=0.0, stop_on_eos=False, progress=True
    )


def match_continuations(clips: Sequence[tuple[Any, int]], made: Sequence[Any]) -> dict[str, Shares]:
    """Share of codes of continuations that are those of the clips, and of the clips after them."""
    from whalesong.metrics.code_baselines import matches

    targets = [codes[:, begin:] for codes, begin in clips]
    new = [codes[:, begin:] for codes, (_, begin) in zip(made, clips, strict=True)]
    pairs = list(zip(new, targets, strict=True))
    first = [(codes[:, :FIRST_FRAMES], target[:, :FIRST_FRAMES]) for codes, target in pairs]
    shifted = zip([new[-1], *new[:-1]], targets, strict=True)
    return {"first": matches(first), "all": matches(pairs), "free_wrong": matches(list(shifted))}


def write_examples(
    model: Any, folder: Path, clips: Sequence[tuple[Any, int]], audio: Sequence[Any]
) -> None:
    """Write `01_prompt.wav`, `01_continued.wav`, `01_real.wav`, their spectrograms, and so on.

    What is continued begins with the prompt; prompt and real clip have been through the codec, too.
    """
    from whalesong.demos.music_compose import write_example

    codec = model.model.pretransform
    for number, ((codes, begin), continued) in enumerate(zip(clips, audio, strict=True), 1):
        if number > NUM_EXAMPLES:
            break
        versions = {
            "prompt": codec.decode(codes[None, :, :begin])[0],
            "continued": continued,
            "real": codec.decode(codes[None])[0],
        }
        for name, version in versions.items():
            write_example(folder / f"{number:02d}_{name}", version, model.sample_rate)


# -- writing --------------------------------------------------------------------------------------


def summary(values: Mapping[str, Any]) -> str:
    """The outcome as a table, what each of its rows shows, and whether the bars are passed."""
    table: Mapping[str, Shares] = values["table"]
    width = max(len(label) for label, _ in ROWS.values())
    columns = "".join(f"{quantizer:>8}" for quantizer in range(len(table["top1"])))
    lines = [
        f"{values['num_clips']} melodies whose motifs training never heard. Codes that are right, "
        "in %, by quantizer\n(the autoregressive half makes 0, the other half the rest):",
        f"{'':{width}}{columns}",
    ]
    for key, (label, _) in ROWS.items():
        lines.append(f"{label:{width}}" + "".join(map(_percent, table[key])))
    lines += ["What that shows, and what not:"]
    lines += [_wrapped(f"- {label}: {meaning}") for label, meaning in ROWS.values()]
    verdicts = [verdict(key, values["halves"][key]) for key in BARS]
    return "\n".join([*lines, *verdicts, ""])


def verdict(key: str, share: float) -> str:
    """Whether a half passes its bar, in words."""
    half = key.partition("_")[0].upper()
    passed = "passed" if share > BARS[key] else "not passed"
    return f"{half} top-1 {100 * share:.1f} %; bar of the specification {BARS[key]:.0%}: {passed}."


def _wrapped(text: str) -> str:
    return textwrap.fill(text, width=LINE_WIDTH, subsequent_indent="  ")


def _percent(share: float | None) -> str:
    return f"{'-':>8}" if share is None else f"{100 * share:8.1f}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
