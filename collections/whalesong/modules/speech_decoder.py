"""`TransformerARSpeechDecoder`: the codes of a frame from the LLM's hidden state and past codes."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from whalesong.modules.kv_cache import KVCache
from whalesong.modules.transformer import Transformer

SpeechActivation = Literal["gelu_new", "gelu", "relu", "silu"]


@dataclass
class InputCache:
    """The last inputs, from which a decoder without keys and values computes everything again."""

    inputs: Tensor
    """(B, S, D), as many as a position depends on besides itself, once there are so many."""
    limit: int
    """The most inputs that are kept."""
    length: int = 0
    """Positions that there were."""

    def append(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Put (B, T, D) behind the inputs; give all of them, (B, S + T, D), and their positions."""
        inputs = torch.cat((self.inputs, x), dim=1)
        self.length += x.shape[1]
        positions = torch.arange(self.length - inputs.shape[1], self.length, device=x.device)
        self.inputs = inputs[:, max(0, inputs.shape[1] - self.limit) :]
        return inputs, positions

    def select(self, rows: Tensor) -> None:
        """Keep some rows (b,), in this order."""
        self.inputs = self.inputs[rows]


SpeechDecoderCache = KVCache | InputCache


class TransformerARSpeechDecoder(nn.Module):
    """A causal transformer over frames: LLM hidden state and codes in, logits of codes out.

    The input of a step is the projected hidden state plus the mean of the embeddings of its K
    codes, those of the frame before. A step sees itself and the `max_seq_len - 1` steps before it,
    with a cache and without, so that it may go on for as long as it likes. The names follow
    `TransformerARSpeechDecoder` of NeMo's speechlm2.

    Args:
        input_dim: width of the hidden states.
        num_codebooks: K.
        vocab_size: ids of each codebook, control ids included.
        d_model: D.
        n_layers: L.
        n_heads: H.
        d_kv: width of a head; even, for all of it carries rotary positions.
        d_ff: inner width of the feed-forward.
        max_seq_len: steps that a step sees, itself included.
        dropout: of the input and at the end of each branch.
        layernorm_epsilon: added to the variance.
        activation_function: of the feed-forward; "gelu_new" is the approximation by tanh.
        init_method_std: of the weights of all linear layers and embeddings at the start.
        use_cache: keep keys and values; otherwise inputs, and compute all from them again.
        unconditional_prob: rows that train without their hidden states, for guidance.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        *,
        input_dim: int,
        num_codebooks: int,
        vocab_size: int,
        d_model: int = 1024,
        n_layers: int = 12,
        n_heads: int = 16,
        d_kv: int = 64,
        d_ff: int = 4096,
        max_seq_len: int = 2048,
        dropout: float = 0.1,
        layernorm_epsilon: float = 1e-5,
        activation_function: SpeechActivation = "gelu_new",
        init_method_std: float = 0.02,
        use_cache: bool = True,
        unconditional_prob: float = 0.0,
    ) -> None:
        super().__init__()
        _check_settings(d_kv, max_seq_len, activation_function, unconditional_prob)
        self.num_codebooks, self.vocab_size = num_codebooks, vocab_size
        self.use_cache, self.unconditional_prob = use_cache, unconditional_prob
        self.input_proj = nn.Identity() if input_dim == d_model else nn.Linear(input_dim, d_model)
        self.code_embedding = nn.Embedding(num_codebooks * vocab_size, d_model)
        self.transformer = Transformer(
            d_model=d_model,
            num_layers=n_layers,
            num_heads=n_heads,
            head_dim=d_kv,
            ff_dim=d_ff,
            activation=activation_function,
            norm_eps=layernorm_epsilon,
            window=max_seq_len,
            rotary_dim=d_kv,
            dropout=dropout,
        )
        self.head = nn.Linear(d_model, num_codebooks * vocab_size)
        offsets = torch.arange(num_codebooks)[:, None] * vocab_size
        self.register_buffer("_offsets", offsets, persistent=False)
        self._init_weights(init_method_std)

    def forward(
        self,
        hidden: Tensor,
        codes: Tensor,
        *,
        cache: SpeechDecoderCache | None = None,
        is_conditioned: Tensor | None = None,
    ) -> Tensor:
        """Logits of the codes of each step, (B, T, K, vocab_size).

        Args:
            hidden: (B, T, D'), of the LLM; whole sequences, or what comes next with a cache.
            codes: (B, K, T), of the frame before each step.
            cache: from `init_cache`; it takes the T steps.
            is_conditioned: (B,), False = the row does without `hidden`; None draws in training.

        Raises:
            ValueError: `codes` do not fit `hidden`.
        """
        expected = (hidden.shape[0], self.num_codebooks, hidden.shape[1])
        if codes.shape != expected:
            raise ValueError(f"`codes` must have the shape {expected}, (B, K, T), beside "
                             f"`hidden`, but have {tuple(codes.shape)}.")  # fmt: skip
        x = self._condition(hidden, is_conditioned)
        x = x + self.code_embedding(codes + self._offsets).mean(dim=1)
        if isinstance(cache, InputCache):
            inputs, positions = cache.append(x)
            x = self.transformer(inputs, positions=positions)[:, -x.shape[1] :]
        else:
            x = self.transformer(x, cache=cache)
        return self.head(x).unflatten(-1, (self.num_codebooks, self.vocab_size))

    def init_cache(self, batch_size: int, max_len: int | None = None) -> SpeechDecoderCache:
        """What `forward` keeps of B rows between steps; its size does not depend on how many.

        Args:
            batch_size: B.
            max_len: the most steps, where it is known; so many may need less memory.
        """
        if self.use_cache:
            return self.transformer.init_cache(batch_size, max_len)
        reach = len(self.transformer.layers) * (self.transformer.window - 1)
        shape = (batch_size, 0, self.transformer.d_model)
        return InputCache(self.head.weight.new_zeros(shape), limit=reach)

    def _condition(self, hidden: Tensor, is_conditioned: Tensor | None) -> Tensor:
        """(B, T, D) of the hidden states, zeros in rows that do without them."""
        x = self.input_proj(hidden.to(self.head.weight.dtype))
        if is_conditioned is None and self.training and self.unconditional_prob:
            is_conditioned = torch.rand(len(x), device=x.device) >= self.unconditional_prob
        if is_conditioned is None:
            return x
        return x.masked_fill(~is_conditioned[:, None, None], 0.0)

    @torch.no_grad()
    def _init_weights(self, std: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def _check_settings(
    d_kv: int, max_seq_len: int, activation_function: str, unconditional_prob: float
) -> None:
    if d_kv < 2 or d_kv % 2:
        raise ValueError(f"`d_kv` must be even and at least 2, but is {d_kv}.")
    if max_seq_len < 1:
        raise ValueError(f"`max_seq_len` must be at least 1, but is {max_seq_len}.")
    if activation_function not in (known := get_args(SpeechActivation)):
        names = "', '".join(known)
        raise ValueError(f"`activation_function` must be one of '{names}', but is "
                         f"'{activation_function}'.")  # fmt: skip
    if not 0 <= unconditional_prob <= 1:
        raise ValueError(f"`unconditional_prob` must be between 0 and 1, but is "
                         f"{unconditional_prob}.")  # fmt: skip
