"""NeMo's audio codec: the same codes and samples as NeMo gives."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from whalesong.modules.codec.build import build_codec
from whalesong.modules.codec.codec import Codec


@torch.no_grad()
@pytest.mark.parametrize("name", ["nemo fsq", "nemo causal rvq"])
def test_equals_nemo(
    name: str, build_tiny: Callable[..., Codec], codec_section: Callable[[str], dict[str, Any]]
) -> None:
    from nemo.collections.tts.models import AudioCodecModel

    codec = build_tiny(name)
    path = codec_section(name)["config"]["model_path"]
    model = AudioCodecModel.restore_from(path, map_location="cpu").eval()
    audio = torch.randn(2, 1, 6 * 60)
    codes, frames = codec.encode(audio)
    tokens, lens = model.encode(audio=audio[:, 0], audio_len=torch.tensor([360, 360]))
    assert torch.equal(codes, tokens.long()) and torch.equal(frames, lens)
    expected, _ = model.decode(tokens=tokens, tokens_len=lens)
    torch.testing.assert_close(codec.decode(codes)[:, 0], expected)


def test_only_inference_is_kept(build_tiny: Callable[..., Codec]) -> None:
    parts = {name.split(".")[0] for name in build_tiny("nemo fsq").state_dict()}
    assert parts <= {"audio_encoder", "vector_quantizer", "audio_decoder"}


def test_fewer_codebooks(build_tiny: Callable[..., Codec]) -> None:
    audio = torch.randn(1, 1, 300)
    cut = build_tiny("nemo causal rvq", num_quantizers=2)
    codes = cut.encode(audio)[0]
    assert torch.equal(codes, build_tiny("nemo causal rvq").encode(audio)[0][:, :2])
    assert cut.decode(codes).shape == audio.shape
    again = build_codec({"type": "nemo_codec", "config": {"model_path": ""}}, assets=cut.assets)
    assert again.state_dict().keys() == cut.state_dict().keys()
    with pytest.raises(ValueError, match="must be 2 or null.*GroupFiniteScalarQuantizer"):
        build_tiny("nemo fsq", num_quantizers=1)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nemo").write_text("no archive")
    with tarfile.open(tmp_path / "b.nemo", "w") as archive:
        archive.add(tmp_path / "a.nemo", "model_config.yaml")
    for name in ("a.nemo", "b.nemo"):
        section = {"type": "nemo_codec", "config": {"model_path": str(tmp_path / name)}}
        with pytest.raises(ValueError, match="must be a `.nemo` file"):
            build_codec(section)


def test_classes_outside_nemo_are_refused(build_tiny: Callable[..., Codec], tmp_path: Path) -> None:
    content = json.loads(build_tiny("nemo fsq").assets["codec.json"])
    mark = tmp_path / "mark"
    content["config"]["audio_decoder"] = {"_target_": "os.mkdir", "path": str(mark)}
    assets = {"codec.json": json.dumps(content).encode()}
    with pytest.raises(ValueError, match="os.mkdir"):
        build_codec({"type": "nemo_codec", "config": {"model_path": ""}}, assets=assets)
    assert not mark.exists()
