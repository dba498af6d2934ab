"""How well audio fits its text: CLAP scores (arXiv 2211.06687), and choosing the best candidate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

from whalesong.metrics.embeddings import resampled, waveform


@runtime_checkable
class TextAudioScorer(Protocol):
    """Whatever tells how well audio fits a text; higher is better."""

    def score(self, texts: Sequence[str], audios: Sequence[Any], sample_rate: int) -> Tensor:
        """Score pairs.

        Args:
            texts: one for each audio.
            audios: waveforms (N,) or (C, N), of any length each.
            sample_rate: the rate of all of them.

        Returns:
            One score for each pair, (B,).
        """
        ...


class ClapScorer:
    """Cosine similarity of text and audio by a CLAP model; a `TextAudioScorer`.

    The same audio always gets the same score: the model's feature extractor cuts longer audio to
    its 10 seconds at a random place, so longer audio is divided here into windows at fixed places,
    and their embeddings are averaged. Audio of another rate is resampled, channels are averaged.

    Args:
        name: folder of a `transformers.ClapModel` with its tokenizer and feature extractor, or its
            hub name, such as "laion/clap-htsat-unfused".
        device: where the model runs.
        batch_size: windows or texts at a time.

    Raises:
        OSError: there is no such model.
    """

    def __init__(
        self, name: str | Path, *, device: str | torch.device = "cpu", batch_size: int = 16
    ) -> None:
        self.model = ClapModel.from_pretrained(name).to(device).eval().requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.features = ClapFeatureExtractor.from_pretrained(name)
        self.batch_size = batch_size

    @property
    def sample_rate(self) -> int:
        """The rate at which the model hears."""
        return self.features.sampling_rate

    def score(self, texts: Sequence[str], audios: Sequence[Any], sample_rate: int) -> Tensor:
        """Cosine of each pair, (B,), from -1 to 1.

        Raises:
            ValueError: texts and audios differ in number, or an audio is empty or not finite.
        """
        if len(texts) != len(audios):
            raise ValueError(
                f"`texts` must be as many as `audios` ({len(audios)}), but are {len(texts)}."
            )
        if not texts:
            return torch.zeros(0)
        return (self.embed_text(texts) * self.embed_audio(audios, sample_rate)).sum(dim=-1)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts, (B, D)."""
        unique = list(dict.fromkeys(texts))  # candidates of one prompt share their text
        embeds = torch.cat([self._embed_texts(batch) for batch in self._batches(unique)])
        return embeds[[unique.index(text) for text in texts]]

    def embed_audio(self, audios: Sequence[Any], sample_rate: int) -> Tensor:
        """Unit vectors of waveforms, (B, D)."""
        windows = [self._windows(audio, sample_rate) for audio in audios]
        flat = [window for group in windows for window in group]
        embeds = torch.cat([self._embed_windows(batch) for batch in self._batches(flat)])
        means = [group.mean(dim=0) for group in embeds.split([len(group) for group in windows])]
        return nn.functional.normalize(torch.stack(means), dim=-1)

    def embed_windows(self, audio: Any, sample_rate: int) -> Tensor:
        """Unit vectors of the windows of one waveform, (n, D): an `Embedder` for distances."""
        windows = self._windows(audio, sample_rate)
        return torch.cat([self._embed_windows(batch) for batch in self._batches(windows)])

    def _windows(self, audio: Any, sample_rate: int) -> list[np.ndarray]:
        """As few windows as cover the audio, evenly spread, none longer than the model hears."""
        samples, size = waveform(audio), self.features.nb_max_samples
        samples = resampled(samples, sample_rate, self.sample_rate)
        count = -(-len(samples) // size)
        begins = np.linspace(0, max(len(samples) - size, 0), count).round().astype(int)
        return [samples[begin : begin + size] for begin in begins]

    @torch.inference_mode()
    def _embed_windows(self, windows: Sequence[np.ndarray]) -> Tensor:
        rate = self.sample_rate
        inputs = self.features(list(windows), sampling_rate=rate, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        # The extractor of a fusion model calls one window of a batch long, by chance; none is.
        is_longer = torch.zeros(len(windows), 1, dtype=torch.bool, device=self.model.device)
        output = self.model.get_audio_features(inputs["input_features"], is_longer=is_longer)
        return _unit_vectors(output)

    @torch.inference_mode()
    def _embed_texts(self, texts: Sequence[str]) -> Tensor:
        longest = self.model.config.text_config.max_position_embeddings - 2  # RoBERTa keeps two
        inputs = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.model.device)
        return _unit_vectors(
            self.model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        )

    def _batches(self, items: Sequence[Any]) -> list[Sequence[Any]]:
        size = self.batch_size
        return [items[begin : begin + size] for begin in range(0, len(items), size)]


def score_candidates(
    scorer: TextAudioScorer,
    texts: Sequence[str],
    candidates: Sequence[Sequence[Any]],
    sample_rate: int,
) -> Tensor:
    """Score several candidates for each text.

    Args:
        scorer: for example a `ClapScorer`.
        texts: B texts.
        candidates: N waveforms for each text.
        sample_rate: the rate of all of them.

    Returns:
        Scores (B, N).

    Raises:
        ValueError: texts do not have the same number of candidates each.
    """
    counts = {len(audios) for audios in candidates}
    if len(candidates) != len(texts) or len(counts) > 1:
        raise ValueError(
            f"`candidates` must be the same number for each of the {len(texts)} texts, but are "
            f"{[len(audios) for audios in candidates]}."
        )
    pairs = [(t, a) for t, audios in zip(texts, candidates, strict=True) for a in audios]
    scores = scorer.score([text for text, _ in pairs], [audio for _, audio in pairs], sample_rate)
    return scores.view(len(texts), -1) if pairs else scores.view(len(texts), 0)


def best_of(scores: Tensor) -> Tensor:
    """The best candidate of each row; the first of equal ones, and never a NaN beside a number.

    Args:
        scores: (B, N), N >= 1.

    Returns:
        Indices (B,).

    Raises:
        ValueError: there is no candidate.
    """
    if scores.dim() != 2 or scores.shape[1] == 0:
        raise ValueError(f"`scores` must be (B, N) with N >= 1, but is {tuple(scores.shape)}.")
    known = scores.float().nan_to_num(nan=-torch.inf)
    # `argmax` does not promise the first one on every device.
    return (known == known.amax(dim=1, keepdim=True)).int().cumsum(dim=1).eq(0).sum(dim=1)


def _unit_vectors(output: Any) -> Tensor:
    """The embeddings, a tensor in older releases of transformers, in fp32 on the CPU."""
    embeds = getattr(output, "pooler_output", output)
    return nn.functional.normalize(embeds.float().cpu(), dim=-1)
