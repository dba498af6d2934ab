"""What demos of models of codes have in common: a codec fitted to the corpus, and its codes."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from whalesong.demos.stages import DemoFolder

SAMPLE_RATE = 16000
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class CodesDemo(DemoFolder):
    """A demo whose corpus becomes codes of a codec of its own."""

    num_codebooks: ClassVar[int] = 4
    codebook_size: ClassVar[int]
    codec_seconds: ClassVar[float]
    """Audio that the codec is fitted to."""

    @property
    def codec(self) -> Path:
        """The codec."""
        return self.folder / "codec.safetensors"

    @property
    def tokenized(self) -> Path:
        """Exists when all of the corpus has codes."""
        return self.folder / "tokenized"

    def fit_codec(self) -> None:
        """Residual k-means on log-mel frames, 50 frames a second."""
        from whalesong.modules.codec.files import save_codec
        from whalesong.modules.codec.training import CodecRecipe
        from whalesong.sound.make_codec import make_codec, read_recordings

        audio = read_recordings(
            self.corpus / "train", sample_rate=SAMPLE_RATE, max_seconds=self.codec_seconds
        )
        codec = make_codec(
            "mel_rvq",
            audio,
            sample_rate=SAMPLE_RATE,
            num_codebooks=self.num_codebooks,
            codebook_size=self.codebook_size,
            recipe=CodecRecipe(seed=0),
        )
        save_codec(codec, self.codec)

    def tokenize(self) -> None:
        """Codes beside the recordings of every split."""
        from whalesong.sound.tokenize import read_pretransform, tokenize_shar

        section = read_pretransform(self.codec)
        for split in SPLITS:
            tokenize_shar(self.corpus / split, section, jobs=2)
        self.tokenized.touch()
