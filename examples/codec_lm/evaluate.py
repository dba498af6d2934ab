"""Evaluate a trained codec language model on clips that it was not trained on.

    python examples/codec_lm/evaluate.py music.nemo held_out_shar --output results.json \
      --train train_shar --clap clap_folder

Prints likelihood (beside an untrained model and code frequencies), FAD and KAD (beside what the
codec alone costs) and CLAP scores (beside real clips and shuffled captions).
"""

import argparse
from pathlib import Path

from whalesong.core.commands import run_command
from whalesong.core.schema import validate
from whalesong.experiment import quiet_libraries


def evaluate(options: dict[str, object]) -> None:
    """Evaluate, write the JSON file and print the table."""
    quiet_libraries()
    from whalesong.models.codec_lm.evaluation import evaluate as evaluation
    from whalesong.models.codec_lm.evaluation.report import format_table

    settings = validate(evaluation.EvaluationSettings, options)
    print(format_table(evaluation.evaluate(settings)))
    print(f"Written: {settings.output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("archive", type=Path, help=".nemo of a CodecLMModel")
    parser.add_argument("held_out", type=Path, help="lhotse shar with captions and recordings")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--num-clips", type=int, help="clips to generate (default: 100)")
    parser.add_argument("--seconds", type=float, help="length (default: that of each clip)")
    parser.add_argument("--batch-size", type=int, help="(default: 8)")
    parser.add_argument("--guidance-scale", type=float, help="(default: that of the model)")
    parser.add_argument("--temperature", type=float, help="(default: that of the model)")
    parser.add_argument("--seed", type=int, help="of the first clip (default: 0)")
    parser.add_argument("--candidates", type=int, help="best of this many for each clip")
    parser.add_argument("--clap", help="folder of a transformers.ClapModel, for CLAP scores")
    parser.add_argument("--embedder", choices=["clap", "mel"], help="of FAD (default: as --clap)")
    parser.add_argument("--reference", type=Path, help="shar of real audio for FAD (default: own)")
    parser.add_argument("--train", type=Path, help="training shar, for the unigram baseline")
    parser.add_argument("--samples", type=Path, help="folder for a few wav files")
    run_command(lambda: evaluate(vars(parser.parse_args())))
