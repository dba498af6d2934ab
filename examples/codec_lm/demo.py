"""From nothing to music for unseen captions on two CPU cores: `make demo-music`.

Run again, it goes on where it stopped.
"""

from whalesong.demos.music import MusicDemo
from whalesong.demos.stages import run_demo

if __name__ == "__main__":
    run_demo(MusicDemo, description=__doc__)
