"""CLAP scores by a tiny real model: deterministic, the same alone and in a batch, for any rate."""

from typing import Any

import numpy as np
import pytest
import scipy.signal
import torch

from whalesong.metrics.clap import ClapScorer, TextAudioScorer, best_of, score_candidates
from whalesong.metrics.frechet import frechet_audio_distance
from whalesong.tiny.clap import build_tiny_clap

RATE = 48000
WORDS = ["a", "slow", "fast", "piano", "beat"]
TEXTS = ["a slow piano", "a fast beat", "a"]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "fusion"])
def scorer(request: Any, tmp_path_factory: pytest.TempPathFactory) -> ClapScorer:
    return ClapScorer(
        build_tiny_clap(tmp_path_factory.mktemp("clap"), words=WORDS, fusion=request.param)
    )


def noise(seconds: float, *, seed: int, rate: int = RATE) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * rate))


AUDIOS = [noise(0.4, seed=0), noise(2.6, seed=1), noise(1.0, seed=2)]


def test_score_is_the_cosine_of_what_the_model_gives(scorer: ClapScorer) -> None:
    text = scorer.tokenizer(TEXTS[0], return_tensors="pt")
    audio = scorer.features(AUDIOS[2], sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        left = scorer.model.get_text_features(**text).pooler_output
        not_longer = torch.zeros(1, 1, dtype=torch.bool)
        right = scorer.model.get_audio_features(audio["input_features"], not_longer).pooler_output
    expected = torch.nn.functional.cosine_similarity(left, right)
    assert torch.allclose(scorer.score(TEXTS[:1], AUDIOS[2:], RATE), expected, atol=1e-5)


def test_pairs_score_in_a_batch_as_alone_and_always_the_same(scorer: ClapScorer) -> None:
    together = scorer.score(TEXTS, AUDIOS, RATE)
    assert together.shape == (3,) and together.abs().max() <= 1 + 1e-6
    np.random.seed(1)
    assert torch.equal(together, scorer.score(TEXTS, AUDIOS, RATE))
    alone = [scorer.score([text], [audio], RATE) for text, audio in zip(TEXTS, AUDIOS, strict=True)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert isinstance(scorer, TextAudioScorer)


def test_all_of_a_long_audio_is_heard(scorer: ClapScorer) -> None:
    windows = scorer.embed_windows(AUDIOS[1], RATE)
    assert windows.shape == (3, 8)
    mean = torch.nn.functional.normalize(windows.mean(dim=0), dim=-1)
    assert torch.allclose(scorer.embed_audio(AUDIOS[1:2], RATE)[0], mean, atol=1e-5)
    begin = scorer.embed_windows(AUDIOS[1][:RATE], RATE)
    assert torch.allclose(windows[:1], begin, atol=1e-5)


def test_other_rates_channels_and_tensors_are_taken(scorer: ClapScorer) -> None:
    low = noise(1.0, seed=5, rate=16000)
    high = scipy.signal.resample_poly(low, 3, 1)
    given = scorer.embed_audio([torch.from_numpy(np.stack([low, low]))], 16000)
    assert torch.allclose(given, scorer.embed_audio([low], 16000), atol=1e-6)
    as_it_is, misread = scorer.embed_audio([high, low], RATE) @ given[0]
    assert 1 - as_it_is < 0.1 * (1 - misread)


def test_long_texts_are_cut_where_the_model_ends(scorer: ClapScorer) -> None:
    long, longer = "piano " * 20, "piano " * 40
    assert torch.equal(scorer.embed_text([long]), scorer.embed_text([longer]))


def test_its_embeddings_serve_frechet_distances(scorer: ClapScorer) -> None:
    sets = [[noise(2.0, seed=s + 10 * k) for s in range(6)] for k in range(2)]
    distance = frechet_audio_distance(*sets, RATE, scorer.embed_windows)
    assert distance.value > 0 and distance.num_evaluated == 12


def test_bad_pairs_are_refused(scorer: ClapScorer) -> None:
    with pytest.raises(ValueError, match=r"as many as `audios` \(1\), but are 2"):
        scorer.score(TEXTS[:2], AUDIOS[:1], RATE)
    with pytest.raises(ValueError, match="audio must be finite"):
        scorer.score(TEXTS[:1], [np.full(100, np.inf)], RATE)
    assert scorer.score([], [], RATE).shape == (0,)


class Loudness:
    """A scorer without a model: the louder, the better."""

    def score(self, texts: Any, audios: Any, sample_rate: int) -> torch.Tensor:
        return torch.tensor([float(abs(audio).max()) for audio in audios])


def test_the_best_candidate_of_each_text_is_found_with_any_scorer() -> None:
    candidates = [[np.full(4, level) for level in row] for row in [[0.1, 0.9, 0.5], [0.7, 0.2, 0]]]
    scores = score_candidates(Loudness(), TEXTS[:2], candidates, RATE)
    assert scores.shape == (2, 3)
    assert best_of(scores).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"for each of the 2 texts, but are \[3, 2\]"):
        score_candidates(Loudness(), TEXTS[:2], [candidates[0], candidates[1][:2]], RATE)


def test_the_first_of_equals_wins_and_nan_never_does() -> None:
    nan = float("nan")
    scores = torch.tensor([[1.0, 3.0, 3.0], [nan, -2.0, nan], [nan, nan, nan]])
    assert best_of(scores).tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match=r"but is \(2, 0\)"):
        best_of(torch.zeros(2, 0))
