"""Four text models learn to find paths in star graphs, on two CPU cores: `make demo-text`.

Run again, it goes on where it stopped.
"""

from whalesong.demos.stages import run_demo
from whalesong.demos.textlm import TextLMDemo

if __name__ == "__main__":
    run_demo(TextLMDemo, description=__doc__)
