"""From nothing to melodies that go on, on two CPU cores: `make demo-audiolm`.

Run again, it goes on where it stopped.
"""

import argparse
from pathlib import Path

from whalesong.demos.audiolm import AudioLMDemo


def main() -> None:
    """Parse the command line and run the stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("demo/audiolm"), help="where all is written"
    )
    parser.add_argument("--short", action="store_true", help="a few steps of everything, for CI")
    options = parser.parse_args()
    demo = AudioLMDemo.short(options.folder) if options.short else AudioLMDemo(options.folder)
    demo.run()


if __name__ == "__main__":
    main()
