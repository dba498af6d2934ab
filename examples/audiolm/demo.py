"""From nothing to melodies that go on, on two CPU cores: `make demo-audiolm`.

Run again, it goes on where it stopped.
"""

from whalesong.demos.audiolm import AudioLMDemo
from whalesong.demos.stages import run_demo

if __name__ == "__main__":
    run_demo(AudioLMDemo, description=__doc__)
