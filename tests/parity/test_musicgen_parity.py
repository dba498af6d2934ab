"""Our codec language model gives the numbers of Musicgen of transformers, with its weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from whalesong.models.codec_lm.exchange import load_musicgen

TEXTS = ["a slow and sad piano", "techno", "a happy song with a drum and a flute"]
CODEBOOKS, SIZE = 4, 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from whalesong.tiny.musicgen import build_tiny_musicgen

    output = tmp_path_factory.mktemp("musicgen") / "tiny"
    return build_tiny_musicgen(output, texts=TEXTS, num_codebooks=CODEBOOKS, codebook_size=SIZE)


@pytest.fixture(scope="module")
def musicgen(folder: Path) -> Any:
    from transformers.models.musicgen import MusicgenForConditionalGeneration

    return MusicgenForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    return load_musicgen(folder)


@pytest.fixture(scope="module")
def inputs(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoTokenizer

    return dict(AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt"))


@torch.no_grad()
def test_logits_equal_musicgen(musicgen: Any, ours: Any, inputs: dict[str, Any]) -> None:
    codes = torch.randint(SIZE, (3, CODEBOOKS, 20))
    layout = ours.pattern_provider.layout(20)
    tokens = layout.build(codes, SIZE)
    expected = musicgen(**inputs, decoder_input_ids=tokens[..., :-1].flatten(0, 1)).logits
    expected = layout.align(expected.view(3, CODEBOOKS, -1, SIZE).transpose(1, 2))
    given = ours(codes, metadata=[{"text": text} for text in TEXTS])
    same = torch.stack([expected[:, k, :, k] for k in range(CODEBOOKS)], dim=1)
    torch.testing.assert_close(given.logits, same, atol=1e-4, rtol=0)


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@torch.no_grad()
def test_greedy_codes_equal_musicgen(
    musicgen: Any, ours: Any, inputs: dict[str, Any], guidance: float
) -> None:
    frames, kept = 24, {}
    decode = musicgen.audio_encoder.decode

    def keep(audio_codes: torch.Tensor, **rest: Any) -> Any:
        kept["codes"] = audio_codes[0]
        return decode(audio_codes, **rest)

    musicgen.audio_encoder.decode = keep
    try:
        musicgen.generate(
            **inputs,
            do_sample=False,
            guidance_scale=guidance,
            max_new_tokens=frames + CODEBOOKS - 1,
        )
    finally:
        del musicgen.audio_encoder.decode
    generated = ours.generate_audio(
        [{"text": text} for text in TEXTS],
        seconds=frames / ours.pretransform.frame_rate,
        temperature=0.0,
        guidance_scale=guidance,
    )
    assert len(kept["codes"].unique()) > 10
    assert torch.equal(torch.stack(generated.codes), kept["codes"])


@torch.no_grad()
def test_codec_equals_musicgens(musicgen: Any, ours: Any) -> None:
    audio = torch.randn(1, 1, 3200) * 0.1
    expected = musicgen.audio_encoder.encode(audio).audio_codes[0]
    codes, _ = ours.pretransform.encode(audio)
    assert torch.equal(codes, expected)
