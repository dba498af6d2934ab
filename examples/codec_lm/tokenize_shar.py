"""Tokenize the audio of lhotse shar once, so that training reads codes only.

    python examples/codec_lm/tokenize_shar.py shar_folder codec.safetensors --jobs 2

The codec is a file of `train_codec.py`, or a YAML file whose `pretransform` (or whole content) is
`{type, config}` as in the model's YAML. Run again after an interruption, it goes on.
"""

import argparse
from pathlib import Path

from whalesong.core.commands import run_command


def tokenize(options: argparse.Namespace) -> None:
    """Write the codes and say what to do with them."""
    from whalesong.sound.tokenize import read_pretransform, tokenize_shar

    section = read_pretransform(options.codec)
    done = tokenize_shar(options.folder, section, output=options.output, jobs=options.jobs)
    kept = f" ({done.num_kept} of them were there)" if done.num_kept else ""
    print(f"{done.folder}: codes of {done.num_cuts} cuts in {done.num_shards} shards{kept}")
    print(f"Codec: {done.codec}")
    print(
        "Next: the other folders in the same way, then\n"
        "      python examples/codec_lm/train.py --config-name=audio_lm"
        f" model.pretransform.type={section['type']}"
        f" model.pretransform.config.model_path={section['config'].get('model_path', 'PATH')}"
        f" data.train_ds.shar_path={done.folder} data.validation_ds.datasets.val.shar_path=FOLDER"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="lhotse shar with recordings")
    parser.add_argument("codec", type=Path, help=".safetensors or YAML")
    parser.add_argument("--output", type=Path, help="another folder, for cuts and codes alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    run_command(lambda: tokenize(parser.parse_args()))
