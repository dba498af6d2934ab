"""From nothing to transcripts of unseen voices on two CPU cores: `make demo`.

Run again, it goes on where it stopped.
"""

from whalesong.demos.salm import SalmDemo
from whalesong.demos.stages import run_demo

if __name__ == "__main__":
    run_demo(SalmDemo, description=__doc__)
