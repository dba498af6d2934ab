"""Go on from a recording, and write audio as soon as it is there.

    python examples/audiolm/stream.py audiolm.nemo prompt.wav continued.wav --seconds 8

Prints how much audio there was after which time.
"""

import argparse
import time
from pathlib import Path

from whalesong.core.commands import run_command
from whalesong.experiment import quiet_libraries


def stream(options: argparse.Namespace) -> None:
    """Generate piece by piece into the file."""
    quiet_libraries()
    import soundfile

    import whalesong
    from whalesong.sound.wav import read_clip

    model = whalesong.AudioLMModel.restore_from(options.archive)
    rate, channels = model.sample_rate, model.model.pretransform.num_channels
    prompt = read_clip(options.prompt, sample_rate=rate, num_channels=channels)
    begin = time.perf_counter()
    chunk, seeds = options.chunk_seconds, [options.seed]
    pieces = model.stream_audio(
        begin=[prompt], seconds=options.seconds, seeds=seeds, nar_chunk_seconds=chunk
    )
    with soundfile.SoundFile(options.output, "w", rate, channels, format="WAV") as file:
        for piece in pieces:
            file.write(piece[0].clamp(-1, 1).T.cpu().numpy())
            print(f"{time.perf_counter() - begin:6.2f} s: {file.tell() / rate:.2f} s of audio")
    print(f"First audio after {pieces.first_audio_seconds:.2f} s. Written: {options.output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path, help=".nemo of an AudioLMModel")
    parser.add_argument("prompt", type=Path, help="recording to go on from")
    parser.add_argument("output", type=Path, help="wav file to write")
    parser.add_argument("--seconds", type=float, default=10, help="of new audio (%(default)s)")
    parser.add_argument("--chunk-seconds", type=float, default=1, help="a piece (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all draws (%(default)s)")
    run_command(lambda: stream(parser.parse_args()))
