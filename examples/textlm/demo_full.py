"""The text demo on the published `star_easy`, in about an hour: `make demo-text-full`.

Run again, it goes on where it stopped.
"""

from whalesong.demos.stages import run_demo
from whalesong.demos.textlm import FullTextLMDemo

if __name__ == "__main__":
    run_demo(FullTextLMDemo, description=__doc__)
