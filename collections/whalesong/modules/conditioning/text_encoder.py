"""Conditioners on pretrained text encoders: T5, T5Gemma, and the body of any causal LM."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel, T5EncoderModel, T5GemmaEncoderModel

from whalesong.modules.codec.codec import Codec
from whalesong.modules.conditioning.conditioner import (
    Condition,
    Conditioner,
    output_projection,
    require_texts,
)
from whalesong.modules.conditioning.config import (
    T5_MODELS,
    CausalLMFields,
    PaddingMode,
    T5Fields,
    T5GemmaFields,
    TextEncoderFields,
)
from whalesong.modules.conditioning.pretrained import (
    Frozen,
    empty_model,
    load_model,
    load_tokenizer,
    saved_files,
    token_ids,
    unpacked,
)
from whalesong.modules.conditioning.section import nearest

LOCATIONS = {
    "audio_model_type",
    "clap_ckpt_path",
    "enable_fusion",
    "model_name",
    "model_path",
    "repo_id",
    "subfolder",
    "t5_model_name",
}
"""Fields that tell which encoder, and nothing about the conditioner."""


class TextEncoderConditioner(Conditioner):
    """Hidden states of a text encoder, mapped to C; a text is padded to the longest of its batch.

    Args:
        output_dim: C.
        encoder: of transformers; frozen, in evaluation mode and in fp32 unless `enable_grad`.
        tokenizer: of the encoder.
        assets: configuration of the encoder and files of the tokenizer.
        max_length: tokens at most; longer texts are cut.
        enable_grad: train the encoder.
        project_out: a linear layer even where the widths agree.
        padding_mode: "zero" and "none" mask padding; "learned" fills up to `max_length` with one
            learned vector that counts as part of the text.
        width: of the hidden states; None means that of the embeddings of tokens.
    """

    kind: str
    """Name of the type."""
    architecture: Any
    """Class of transformers that reads and builds the encoder."""

    def __init__(
        self,
        output_dim: int,
        *,
        encoder: PreTrainedModel,
        tokenizer: Any,
        assets: Mapping[str, bytes],
        max_length: int = 128,
        enable_grad: bool = False,
        project_out: bool = False,
        padding_mode: PaddingMode = "zero",
        width: int | None = None,
    ) -> None:
        super().__init__(output_dim, assets=assets)
        self.model = Frozen(encoder, trainable=enable_grad)
        self.tokenizer = tokenizer
        self.max_length = max_length
        width = width or encoder.get_input_embeddings().embedding_dim
        self.proj_out = output_projection(width, output_dim, project_out=project_out)
        self.padding = nn.Parameter(torch.randn(output_dim)) if padding_mode == "learned" else None

    @classmethod
    def from_fields(
        cls,
        fields: TextEncoderFields,
        output_dim: int,
        *,
        assets: Mapping[str, bytes] | None = None,
        codec: Codec | None = None,
    ) -> Self:
        """Load encoder and tokenizer, or build them without weights.

        Raises:
            ValueError: an unknown name, or a folder without such a model.
        """
        if assets is None:
            source, options = cls.source(fields)
            encoder = load_model(cls.architecture, source, **options)
            tokenizer = load_tokenizer(source, subfolder=options.get("subfolder", ""))
            assets = saved_files(encoder.config, tokenizer)
        else:
            with unpacked(assets) as folder:
                tokenizer = load_tokenizer(folder)
                encoder = empty_model(cls.architecture, AutoConfig.from_pretrained(folder))
        parts = {"encoder": encoder, "tokenizer": tokenizer, "assets": assets}
        return cls(output_dim, **parts, **fields.settings(without=LOCATIONS))

    @classmethod
    def source(cls, fields: Any) -> tuple[str, dict[str, Any]]:
        """Folder or name of the encoder, and what to tell `from_pretrained` beside it."""
        raise NotImplementedError

    def embed(self, values: Sequence[Any]) -> Condition:
        """Embed texts."""
        require_texts(self.kind, values)
        ids, mask = token_ids(
            self.tokenizer, values, max_length=self.max_length, device=self.device
        )
        embeds = self.proj_out(self.hidden(ids, mask).to(self.dtype))
        return self._fill(Condition.masked(embeds, mask))

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (B, S, width) of tokens (B, S)."""
        return self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state

    def _fill(self, condition: Condition) -> Condition:
        """Fill up with the learned padding, where there is one."""
        if self.padding is None:
            return condition
        missing = self.max_length - condition.mask.shape[1]
        embeds = nn.functional.pad(condition.embeds, (0, 0, 0, missing))
        mask = nn.functional.pad(condition.mask, (0, missing))
        filled = torch.where(mask.unsqueeze(-1), embeds, self.padding.to(embeds.dtype))
        return Condition(filled, torch.ones_like(mask))


class T5Conditioner(TextEncoderConditioner):
    """A T5 encoder."""

    kind = "t5"
    architecture = T5EncoderModel

    @classmethod
    def source(cls, fields: T5Fields) -> tuple[str, dict[str, Any]]:
        """A folder, or one of `T5_MODELS`."""
        name = fields.model_path or fields.t5_model_name
        if name not in T5_MODELS and not Path(name).is_dir():
            raise ValueError(f"Unknown T5 model name: {name}{nearest(name, T5_MODELS)}")
        return name, {}


class T5GemmaConditioner(TextEncoderConditioner):
    """The encoder of a T5Gemma."""

    kind = "t5gemma"
    architecture = T5GemmaEncoderModel

    @classmethod
    def source(cls, fields: T5GemmaFields) -> tuple[str, dict[str, Any]]:
        """A folder or a repository of the hub, or a folder inside of either."""
        options = {"subfolder": fields.subfolder} if fields.subfolder else {}
        source = fields.model_path or fields.repo_id or fields.model_name
        return source, {"is_encoder_decoder": False, **options}


class CausalLMConditioner(TextEncoderConditioner):
    """The body of a causal LM.

    Args:
        output_dim: C.
        learned_scale: multiply the embeddings by a learned number.
        settings: see `TextEncoderConditioner`.
    """

    kind = "causal_lm"
    architecture = AutoModel

    def __init__(self, output_dim: int, *, learned_scale: bool = True, **settings: Any) -> None:
        super().__init__(output_dim, **settings)
        self.scale = nn.Parameter(torch.ones(())) if learned_scale else None

    @classmethod
    def source(cls, fields: CausalLMFields) -> tuple[str, dict[str, Any]]:
        """A folder or a name on the hub."""
        return fields.model_path or fields.model_name, {}

    def embed(self, values: Sequence[Any]) -> Condition:
        """Embed texts."""
        condition = super().embed(values)
        if self.scale is None:
            return condition
        return Condition(condition.embeds * self.scale, condition.mask)
