"""Make a codec from recordings; nothing is downloaded.

    python examples/codec_lm/train_codec.py mel_rvq recordings codec.safetensors
    python examples/codec_lm/train_codec.py convnext_istft shar codec.safetensors --seconds 600

`mel_rvq` fits in seconds, keeps the spectrum and guesses the phase; `convnext_istft` trains for
minutes and keeps the waveform. Both have 50 frames a second.
"""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

from whalesong.core.commands import run_command


def make(options: Namespace) -> None:
    """Make the codec, measure it on recordings left out, and say what to do with it."""
    from whalesong.modules.codec.files import save_codec
    from whalesong.modules.codec.training import CodecRecipe
    from whalesong.sound import make_codec as making

    rate = options.sample_rate
    audio = making.read_recordings(options.folder, sample_rate=rate, max_seconds=options.audio)
    train, held_out = making.split_recordings(audio, seed=options.seed)
    recipe = CodecRecipe(num_steps=options.steps, max_seconds=options.seconds, seed=options.seed)
    sizes = {"num_codebooks": options.codebooks, "codebook_size": options.codebook_size}
    codec = making.make_codec(options.type, train, sample_rate=rate, recipe=recipe, **sizes)
    save_codec(codec, options.output)
    listen = options.output.with_name(f"{options.output.stem}_examples")
    making.write_examples(codec, held_out[:3], listen)
    print(f"{options.output}: {making.describe(codec, train)}")
    print(f"Held out: {making.measure_codec(codec, held_out)}; listen in {listen}")
    print(f"Next: python examples/codec_lm/tokenize_shar.py SHAR_FOLDER {options.output}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("type", choices=["mel_rvq", "convnext_istft"])
    add("folder", type=Path, help="lhotse shar, or audio files at any depth")
    add("output", type=Path, help="the .safetensors file to write")
    add("--sample-rate", type=int, default=16000, help="in Hz (%(default)s)")
    add("--codebooks", type=int, default=4, help="codes of a frame (%(default)s)")
    add("--codebook-size", type=int, default=512, help="ids of a codebook (%(default)s)")
    add("--steps", type=int, default=2500, help="of convnext_istft's training (%(default)s)")
    add("--seconds", type=float, help="end that training earlier, after this time")
    add("--audio", type=float, default=3600, help="seconds to read at most (%(default)s)")
    add("--seed", type=int, default=0, help="of everything that is drawn (%(default)s)")
    run_command(lambda: make(parser.parse_args()))
