"""Read the weights of a Musicgen of transformers into one archive.

    python examples/codec_lm/from_musicgen.py musicgen_folder musicgen.nemo

Codec, text encoder and tokenizer travel in the archive, which generates, trains (also with LoRA)
and is evaluated like any other codec language model.
"""

import argparse

from whalesong.core.commands import run_command
from whalesong.experiment import quiet_libraries


def convert(options: argparse.Namespace) -> None:
    """Write the archive and say what to do with it."""
    quiet_libraries()
    import whalesong
    from whalesong.models.codec_lm.exchange import import_from_musicgen

    import_from_musicgen(whalesong.CodecLMModel, options.source).save_to(options.target)
    print(f"Written: {options.target}")
    print(
        f"Next: python examples/codec_lm/generate.py predict.ckpt_path={options.target} "
        "\"predict.prompts=['a relaxing piano melody']\" predict.generation.guidance_scale=3"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="folder of a Musicgen, or its name on the hub")
    parser.add_argument("target", help="the .nemo archive to write")
    arguments = parser.parse_args()
    run_command(lambda: convert(arguments))
