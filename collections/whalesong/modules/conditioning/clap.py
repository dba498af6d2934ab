"""Conditioners on CLAP, as transformers has it: texts and recordings in one space."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    ClapAudioModelWithProjection,
    ClapFeatureExtractor,
    ClapTextModelWithProjection,
)

from whalesong.modules.codec.codec import Codec
from whalesong.modules.conditioning.conditioner import (
    Condition,
    Conditioner,
    output_projection,
    require_texts,
    single,
)
from whalesong.modules.conditioning.config import ClapAudioFields, ClapFields, ClapTextFields
from whalesong.modules.conditioning.pretrained import (
    Frozen,
    empty_model,
    load_feature_extractor,
    load_model,
    saved_files,
    token_ids,
    unpacked,
)
from whalesong.modules.conditioning.recordings import mix_channels, read_recording, resample
from whalesong.modules.conditioning.text_encoder import TextEncoderConditioner


class ClapTextConditioner(TextEncoderConditioner):
    """The embedding of a text that CLAP compares, (B, 1, C), or hidden states of all its tokens.

    Args:
        output_dim: C.
        encoder: the text side of CLAP.
        use_text_features: hidden states of all tokens, (B, S, C).
        feature_layer_ix: which hidden states.
        finetune: train the encoder.
        settings: see `TextEncoderConditioner`.
    """

    kind = "clap_text"
    architecture = ClapTextModelWithProjection

    def __init__(
        self,
        output_dim: int,
        *,
        encoder: ClapTextModelWithProjection,
        use_text_features: bool = False,
        feature_layer_ix: int = -1,
        finetune: bool = False,
        **settings: Any,
    ) -> None:
        config = encoder.config
        width = config.hidden_size if use_text_features else config.projection_dim
        super().__init__(output_dim, encoder=encoder, width=width, enable_grad=finetune, **settings)
        self.use_text_features = use_text_features
        self.feature_layer_ix = feature_layer_ix

    @classmethod
    def source(cls, fields: ClapTextFields) -> tuple[str, dict[str, Any]]:
        """A folder or a name on the hub."""
        return _source(fields), {}

    def embed(self, values: Sequence[Any]) -> Condition:
        """Embed texts."""
        if self.use_text_features:
            return super().embed(values)
        require_texts(self.kind, values)
        ids, mask = token_ids(
            self.tokenizer, values, max_length=self.max_length, device=self.device
        )
        embeds = self.model(input_ids=ids, attention_mask=mask.long()).text_embeds
        return single(self.proj_out(_of_unit_length(embeds).to(self.dtype)))

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (B, S, width) of tokens (B, S)."""
        output = self.model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
        return output.hidden_states[self.feature_layer_ix]


class ClapAudioConditioner(Conditioner):
    """The embedding of a recording that CLAP compares, (B, 1, C).

    A recording is audio (C, N) or (N,) at CLAP's rate, or `{"audio": ..., "sample_rate": ...}`.
    What is longer than CLAP's window is cut, so that nothing is left to chance.

    Args:
        output_dim: C.
        encoder: the audio side of CLAP; frozen unless `finetune`.
        extractor: makes its spectrograms.
        assets: configuration of both.
        project_out: a linear layer even where the widths agree.
        finetune: train the encoder.
    """

    def __init__(
        self,
        output_dim: int,
        *,
        encoder: ClapAudioModelWithProjection,
        extractor: ClapFeatureExtractor,
        assets: Mapping[str, bytes],
        project_out: bool = False,
        finetune: bool = False,
    ) -> None:
        super().__init__(output_dim, assets=assets)
        width = encoder.config.projection_dim
        self.model = Frozen(encoder, trainable=finetune)
        self.extractor = extractor
        self.proj_out = output_projection(width, output_dim, project_out=project_out)

    @classmethod
    def from_fields(
        cls,
        fields: ClapAudioFields,
        output_dim: int,
        *,
        assets: Mapping[str, bytes] | None = None,
        codec: Codec | None = None,
    ) -> Self:
        """Load the audio side of a CLAP, or build it without weights.

        Raises:
            ValueError: there is none.
        """
        if assets is None:
            source = _source(fields)
            encoder = load_model(ClapAudioModelWithProjection, source)
            extractor = load_feature_extractor(source)
            assets = saved_files(encoder.config, extractor)
        else:
            with unpacked(assets) as folder:
                extractor = load_feature_extractor(folder)
                config = AutoConfig.from_pretrained(folder)
            encoder = empty_model(ClapAudioModelWithProjection, config)
        parts = {"encoder": encoder, "extractor": extractor, "assets": assets}
        return cls(output_dim, project_out=fields.project_out, finetune=fields.finetune, **parts)

    def embed(self, values: Sequence[Any]) -> Condition:
        """Embed recordings."""
        features = torch.cat([self._features(value) for value in values]).to(self.device)
        # Fusing several windows is for longer recordings.
        is_longer = torch.zeros(len(values), 1, dtype=torch.bool, device=self.device)
        embeds = self.model(input_features=features, is_longer=is_longer).audio_embeds
        return single(self.proj_out(_of_unit_length(embeds).to(self.dtype)))

    def _features(self, recording: Any) -> Tensor:
        """Spectrograms (1, windows, frames, bands) of one recording."""
        rate = self.extractor.sampling_rate
        tensor, own_rate = read_recording(recording, sample_rate=rate)
        if not tensor.is_floating_point():
            raise ValueError(f"a `clap_audio` condition must be audio, but is {tensor.dtype}.")
        samples = resample(mix_channels(tensor, 1), own_rate, rate)[0]
        samples = samples[: self.extractor.nb_max_samples].detach().cpu().numpy()
        features = self.extractor(samples, sampling_rate=rate)["input_features"]
        return torch.from_numpy(np.asarray(features, dtype=np.float32))


def _source(fields: ClapFields) -> str:
    """Folder or name on the hub.

    Raises:
        ValueError: a file of laion_clap.
    """
    if Path(fields.clap_ckpt_path).is_file():
        raise ValueError(
            "`clap_ckpt_path` must be the folder of a `ClapModel` of transformers, but is the file "
            f"'{fields.clap_ckpt_path}'; transformers' convert_clap_original_pytorch_to_hf.py "
            "makes the folder of a checkpoint of laion_clap."
        )
    return fields.clap_ckpt_path


def _of_unit_length(embeds: Tensor) -> Tensor:
    return torch.nn.functional.normalize(embeds, dim=-1)
