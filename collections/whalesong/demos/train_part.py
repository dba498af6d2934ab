"""Train one of the demo's pretrained parts in a process of its own.

python -m whalesong.demos.train_part asr|llm corpus output steps
"""

import sys
from pathlib import Path

NUM_SENTENCES = 3000


def main(part: str, corpus: Path, output: Path, steps: int) -> None:
    """Train the recognizer on the corpus, or the LLM on sentences of the same grammar."""
    if part == "asr":
        from whalesong.experiment import quiet_libraries
        from whalesong.tiny.asr import train_tiny_asr

        quiet_libraries()
        train_tiny_asr(corpus / "train", output, max_steps=steps)
    else:
        from whalesong.corpora.grammar import sample_sentences
        from whalesong.tiny.llm import train_tiny_llm

        train_tiny_llm(sample_sentences(0, NUM_SENTENCES), output, max_steps=steps)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
