"""A conditioner on the tokens of a pretrained tokenizer."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import nn

from whalesong.modules.codec.codec import Codec
from whalesong.modules.conditioning.conditioner import (
    Condition,
    Conditioner,
    output_projection,
    require_texts,
)
from whalesong.modules.conditioning.config import TokenizerLUTFields
from whalesong.modules.conditioning.pretrained import (
    load_tokenizer,
    saved_files,
    token_ids,
    unpacked,
)


class TokenizerLUTConditioner(Conditioner):
    """A learned embedding for each token of a pretrained tokenizer.

    Args:
        output_dim: C.
        tokenizer: of transformers.
        assets: files of the tokenizer.
        max_length: S at most; longer texts are cut.
        use_abs_pos_emb: add a learned embedding of the position.
        project_out: a linear layer behind the embedding.
    """

    def __init__(
        self,
        output_dim: int,
        *,
        tokenizer: Any,
        assets: Mapping[str, bytes],
        max_length: int = 1024,
        use_abs_pos_emb: bool = False,
        project_out: bool = False,
    ) -> None:
        super().__init__(output_dim, assets=assets)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.token_embedder = nn.Embedding(len(tokenizer), output_dim)
        self.proj_out = output_projection(output_dim, output_dim, project_out=project_out)
        self.positions = nn.Embedding(max_length, output_dim) if use_abs_pos_emb else None

    @classmethod
    def from_fields(
        cls,
        fields: TokenizerLUTFields,
        output_dim: int,
        *,
        assets: Mapping[str, bytes] | None = None,
        codec: Codec | None = None,
    ) -> Self:
        """Load the tokenizer.

        Raises:
            ValueError: there is none.
        """
        if assets is None:
            tokenizer = load_tokenizer(fields.tokenizer_name)
            if fields.special_tokens:
                tokenizer.add_special_tokens({"additional_special_tokens": fields.special_tokens})
            assets = saved_files(tokenizer)
        else:
            with unpacked(assets) as folder:
                tokenizer = load_tokenizer(folder)
        settings = fields.settings(without={"tokenizer_name", "special_tokens"})
        return cls(output_dim, tokenizer=tokenizer, assets=assets, **settings)

    def embed(self, values: Sequence[Any]) -> Condition:
        """Embed texts."""
        require_texts("lut", values)
        ids, mask = token_ids(
            self.tokenizer, values, max_length=self.max_length, device=self.device
        )
        embeds = self.proj_out(self.token_embedder(ids))
        if self.positions is not None:
            embeds = embeds + self.positions.weight[: ids.shape[1]]
        return Condition.masked(embeds, mask)
