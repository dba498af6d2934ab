"""Pack recordings and their transcripts into lhotse shar, ready for training.

    python examples/speechlm2/manifest_to_shar.py recordings.jsonl shar_folder

A manifest holds one JSON object a line: `audio_filepath` (absolute or relative to the manifest),
`text`, and optionally `offset`, `duration`, `lang`, `context` and other attributes. Of several
manifests, each becomes a folder of its name in the shar folder.
"""

import argparse
from pathlib import Path

from whalesong.core.commands import run_command


def convert(options: argparse.Namespace) -> None:
    """Write one shar folder for each manifest and say what to do with them."""
    from whalesong.data.shar import manifest_to_shar

    several = len(options.manifests) > 1
    folders = [
        options.folder / path.stem if several else options.folder for path in options.manifests
    ]
    for manifest, folder in zip(options.manifests, folders, strict=True):
        written = manifest_to_shar(
            manifest, folder, sample_rate=options.sample_rate, on_bad_cut=options.on_bad_cut
        )
        left_out = f", {written.left_out} lines left out" if written.left_out else ""
        print(f"{folder}: {written.num_cuts} cuts, {written.seconds / 3600:.2f} h{left_out}")
    print(
        "Next: python examples/speechlm2/salm_train.py --config-path=conf --config-name=salm"
        f" data.train_ds.input_cfg.0.shar_path={folders[0]}"
        f" data.validation_ds.datasets.val.input_cfg.0.shar_path={(*folders, 'FOLDER')[1]}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "manifests", nargs="+", type=Path, help="JSON lines, wav or flac named in them"
    )
    parser.add_argument("folder", type=Path, help="where the shar goes; new or empty")
    parser.add_argument("--sample-rate", type=int, help="resample to this rate in Hz")
    parser.add_argument(
        "--on-bad-cut", choices=["raise", "skip"], default="raise", help="bad lines"
    )
    run_command(lambda: convert(parser.parse_args()))
