"""Our own codecs live in one file, and are built again from their assets."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from whalesong.modules.codec.build import build_codec
from whalesong.modules.codec.convnext_istft import ConvNextISTFTCodec, ConvNextISTFTSizes
from whalesong.modules.codec.files import OwnCodec, codec_from_assets, load_codec, save_codec
from whalesong.modules.codec.mel_rvq import MelRVQCodec, MelRVQSizes

AUDIO = 0.1 * torch.randn(1, 1, 5000, generator=torch.Generator().manual_seed(0))


def _random(codec: OwnCodec) -> OwnCodec:
    codec.quantizer.codebooks.normal_(generator=torch.Generator().manual_seed(0))
    return codec


@pytest.fixture(scope="module", params=["mel_rvq", "convnext_istft"])
def codec(request: pytest.FixtureRequest) -> OwnCodec:
    sizes = {"sample_rate": 8000, "hop_length": 160, "num_codebooks": 3, "codebook_size": 16}
    torch.manual_seed(0)
    if request.param == "mel_rvq":
        return _random(MelRVQCodec(MelRVQSizes(n_fft=512, n_mels=20, **sizes)))
    narrow = {"n_fft": 320, "dim": 16, "latent_dim": 8, "num_blocks": 1}
    return _random(ConvNextISTFTCodec(ConvNextISTFTSizes(**narrow, **sizes)))


def test_a_loaded_codec_gives_the_same(codec: OwnCodec, tmp_path: Path) -> None:
    save_codec(codec, tmp_path / "new" / "codec.safetensors")
    loaded = load_codec(tmp_path / "new" / "codec.safetensors")
    codes, _ = codec.encode(AUDIO)
    assert torch.equal(loaded.encode(AUDIO)[0], codes)
    assert torch.equal(loaded.decode(codes), codec.decode(codes))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["codec.safetensors"]


def test_a_section_builds_it_with_and_without_weights(codec: OwnCodec, tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    save_codec(codec, path)
    config = {"model_path": str(path), "num_quantizers": 2}
    section = {"type": codec.type_name, "config": config}
    built = build_codec(section)
    codes, _ = built.encode(AUDIO)
    assert torch.equal(codes, codec.encode(AUDIO)[0][:, :2])
    path.unlink()
    restored = build_codec(section, assets=built.assets)
    restored.load_state_dict(built.state_dict())
    assert torch.equal(restored.encode(AUDIO)[0], codes)
    assert torch.equal(restored.decode(codes), built.decode(codes))


def test_a_shortened_codec_can_be_saved(codec: OwnCodec, tmp_path: Path) -> None:
    save_codec(codec.truncated(1), tmp_path / "short.safetensors")
    loaded = load_codec(tmp_path / "short.safetensors")
    assert loaded.num_codebooks == 1
    assert torch.equal(loaded.encode(AUDIO)[0], codec.encode(AUDIO)[0][:, :1])


def test_more_codebooks_than_there_are(codec: OwnCodec, tmp_path: Path) -> None:
    save_codec(codec, tmp_path / "codec.safetensors")
    config = {"model_path": str(tmp_path / "codec.safetensors"), "num_quantizers": 4}
    with pytest.raises(ValueError, match="`num_quantizers` must be from 1 to 3, .* but is 4"):
        build_codec({"type": codec.type_name, "config": config})


def test_a_file_of_the_other_type(tmp_path: Path) -> None:
    save_codec(MelRVQCodec(MelRVQSizes(codebook_size=4)), tmp_path / "mel.safetensors")
    config = {"model_path": str(tmp_path / "mel.safetensors")}
    with pytest.raises(ValueError, match="type 'convnext_istft', but holds 'mel_rvq'"):
        build_codec({"type": "convnext_istft", "config": config})


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"):
        load_codec(tmp_path / "nothing.safetensors")


def test_a_broken_or_foreign_file(codec: OwnCodec, tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    save_codec(codec, path)
    whole = path.read_bytes()
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    foreign = (tmp_path / "foreign.safetensors").read_bytes()
    for content in (b"", whole[:-1], whole[:50], b"RIFF" + whole, foreign):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="codec.safetensors: is not a whole file"):
            load_codec(path)


def test_foreign_assets() -> None:
    for assets in ({}, {"codec.json": b"{"}, {"codec.json": b'{"type": "mp3", "config": {}}'}):
        with pytest.raises(ValueError, match="`assets` must hold 'codec.json'"):
            codec_from_assets(assets)


def test_a_failed_write_keeps_the_old_file(codec: OwnCodec, tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    (path / "taken").mkdir(parents=True)
    with pytest.raises(OSError):
        save_codec(codec, path)
    assert [found.name for found in tmp_path.iterdir()] == ["codec.safetensors"]
