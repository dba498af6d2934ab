"""A recognizer that listens to what a model says."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from lhotse.augmentation import get_or_create_resampler
from nemo.collections.asr.models import ASRModel
from nemo.collections.common.parts.optional_cuda_graphs import WithOptionalCudaGraphs
from torch import Tensor

from whalesong.modules.precision import default_dtype
from whalesong.speech.pretrained import load_asr

MIN_SECONDS = 0.1
"""Shorter audio holds no word, and too few frames for the recognizer."""


class ScoringASR:
    """NeMo's recognizer, loaded when it is first used, once for each process.

    It is no part of a network: its weights are neither trained nor saved.

    Args:
        name_or_path: `.nemo` file, or the name that NeMo published it under.
    """

    def __init__(self, name_or_path: str) -> None:
        self.name_or_path = name_or_path

    def load(self) -> ASRModel:
        """The recognizer, frozen.

        Raises:
            ConfigError: it is not there.
        """
        return _load(self.name_or_path)

    @torch.no_grad()
    def transcribe(self, audios: Sequence[Tensor], sample_rate: int) -> list[str]:
        """What is heard in each audio, on the device of the first one.

        Args:
            audios: waveforms (N,), each with a length of its own.
            sample_rate: their rate in Hz; they are resampled once if the recognizer has another.

        Raises:
            ConfigError: the recognizer is not there.
        """
        texts = [""] * len(audios)
        asr = self.load()
        resampler = _resampler(sample_rate, int(asr.preprocessor.featurizer.sample_rate))
        heard = {
            row: resampler(audio.detach().float().cpu()[None])[0]
            for row, audio in enumerate(audios)
            if len(audio) >= MIN_SECONDS * sample_rate
        }
        if not heard:
            return texts
        device = audios[0].device
        with default_dtype(torch.float32), torch.autocast(device.type, enabled=False):
            found = asr.to(device).transcribe(
                list(heard.values()), batch_size=len(heard), num_workers=0, verbose=False
            )
        for row, hypothesis in zip(heard, found, strict=True):
            texts[row] = hypothesis.text
        return texts


@lru_cache(maxsize=1)
@torch.inference_mode(False)  # in validation it is on, but the weights are used elsewhere, too
def _load(name_or_path: str) -> ASRModel:
    with default_dtype(torch.float32):
        asr = load_asr(name_or_path, key="model.scoring_asr")
    asr.requires_grad_(False)
    # Graphs would be captured anew for the many lengths, beside the memory of the training.
    WithOptionalCudaGraphs.disable_cuda_graphs_recursive(asr, attribute_path="decoding.decoding")
    return asr


def _resampler(given: int, wanted: int) -> torch.nn.Module:
    return torch.nn.Identity() if given == wanted else get_or_create_resampler(given, wanted)
