"""The network of the duplex families: one LLM step a frame, for two channels in time.

At step t it sees the user's frame t, the text token of frame t and the agent's codes of frame
t - 1; it predicts the text token of frame t + 1 and the codes of frame t.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from whalesong.core.parts import Batch
from whalesong.data.text_channel import TextIds
from whalesong.duplex.config import DuplexGeneration
from whalesong.duplex.drawing import FrameDraws
from whalesong.duplex.steps import prepare_steps
from whalesong.modules.codec.codec import Codec
from whalesong.modules.frames import FrameCounter
from whalesong.modules.llm import (
    head_logits,
    hidden_states,
    init_cache,
    max_positions,
    next_hidden_states,
)
from whalesong.modules.perception import settle_modes

NUM_CONTROL_CODES = 3


@dataclass
class DuplexOutput:
    """Logits of the M real steps, aligned with their labels."""

    text_logits: Tensor
    """(M, Vt)."""
    text_labels: Tensor
    """(M,)."""
    audio_logits: Tensor
    """(M, K, V + 3)."""
    code_labels: Tensor
    """(M, K)."""
    mask: Tensor
    """(B, T), True = one of them."""


@dataclass
class DecodingState:
    """What a conversation of B rows has come to after some frames."""

    llm_cache: Cache
    speech_cache: Any
    """Of the family; `select` keeps rows of it."""
    text: Tensor
    """(B,): the token that was drawn last."""
    codes: Tensor
    """(B, K): the codes that were drawn last."""
    draws: FrameDraws
    num_frames: int = 0

    def select(self, rows: Tensor) -> None:
        """Keep some rows (b,), in this order."""
        self.llm_cache.batch_select_indices(rows)
        if self.speech_cache is not None:
            self.speech_cache.select(self.draws.variants(rows, len(self.text)))
        self.text, self.codes = self.text[rows], self.codes[rows]
        self.draws.select(rows)


class DuplexModel(nn.Module, ABC):
    """Perception, LLM and codec on one grid of frames; single device, no trainer.

    Args:
        llm: Hugging Face causal LM, with or without LoRA.
        perception: NeMo's `AudioPerceptionModule` whose output is as wide as the LLM's embeddings.
        counter: frame counter of `perception`.
        audio_codec: of the agent's audio, with the frame rate of `counter`.
        ids: control tokens of the text channel.
        user_channel_weight: factor of what perception gives.
        attention_window: frames that the LLM looks back; None for all.

    Raises:
        ValueError: codec and perception have other frame rates.
    """

    def __init__(
        self,
        *,
        llm: PreTrainedModel,
        perception: nn.Module,
        counter: FrameCounter,
        audio_codec: Codec,
        ids: TextIds,
        user_channel_weight: float = 1.0,
        attention_window: int | None = None,
    ) -> None:
        super().__init__()
        check_grid(counter, audio_codec)
        self.llm, self.perception, self.counter = llm, perception, counter
        self.audio_codec, self.ids = audio_codec, ids
        self.num_codebooks = audio_codec.num_codebooks
        self.codebook_size = audio_codec.codebook_size
        self.user_channel_weight = user_channel_weight
        self.attention_window = attention_window
        self.register_buffer("silence_codes", silence_codes(audio_codec))

    @property
    def speech_vocab_size(self) -> int:
        """Ids of one codebook with the three control codes behind them."""
        return self.codebook_size + NUM_CONTROL_CODES

    @property
    def speech_bos_id(self) -> int:
        """Code of the frame in which a turn begins."""
        return self.codebook_size

    @property
    def speech_eos_id(self) -> int:
        """Code of the frame in which a turn ends."""
        return self.codebook_size + 1

    @property
    def speech_delay_id(self) -> int:
        """Code before the first frame."""
        return self.codebook_size + 2

    @property
    def frame_length(self) -> float:
        """Seconds."""
        return 1 / self.counter.frame_rate

    @property
    def max_frames(self) -> int | None:
        """How long a conversation may become; None where there is no limit."""
        return max_positions(self.llm, window=self.attention_window)

    def train(self, mode: bool = True) -> "DuplexModel":
        """Frozen parts stay in evaluation mode: no dropout, dither or BatchNorm statistics."""
        super().train(mode)
        settle_modes(self.llm, self.perception, training=mode)
        return self

    # -- what goes in -----------------------------------------------------------------------------

    def encode_source(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Frames of the user's audio.

        Args:
            audio: (B, N) at the rate of `counter`, fp32.
            audio_lens: samples of each row (B,), which may be 0.

        Returns:
            frames (B, F, D) and how many each row has (B,), one for each begun 80 ms at most.
        """
        least = self.counter.min_samples
        audio = nn.functional.pad(audio, (0, max(least - audio.shape[1], 0)))
        frames, lens = self.perception(
            input_signal=audio, input_signal_length=audio_lens.clamp_min(least)
        )
        step = self.counter.samples_per_frame
        lens = torch.minimum(lens, (audio_lens + step - 1) // step)
        return frames[:, : int(lens.max())] * self.user_channel_weight, lens

    def encode_target(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (B, K, F) of the agent's audio (B, N), and how many each row has (B,)."""
        return self.audio_codec.encode(audio[:, None], audio_lens)

    @abstractmethod
    def embed_inputs(self, source: Tensor, text: Tensor, codes: Tensor) -> Tensor:
        """Inputs of the LLM (B, T, D) from frames (B, T, D), tokens (B, T), codes (B, K, T)."""

    # -- what comes out ---------------------------------------------------------------------------

    @abstractmethod
    def speech_logits(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Logits (B, T, K, V + 3) from hidden states (B, T, D) and codes before (B, K, T)."""

    @abstractmethod
    def init_speech_cache(
        self, batch_size: int, generation: DuplexGeneration, num_frames: int | None
    ) -> Any:
        """What `next_speech_logits` needs between frames; None where it needs nothing."""

    @abstractmethod
    def next_speech_logits(self, hidden: Tensor, state: DecodingState) -> Tensor:
        """Logits (B, K, V + 3) of one frame from its hidden states (B, 1, D)."""

    def forward(self, batch: Batch) -> DuplexOutput:
        """Predict text and codes of all real steps of a batch of `DuplexCollator`."""
        steps = prepare_steps(self, batch)
        embeds = self.embed_inputs(steps.source, steps.text, steps.codes)
        # Attention is causal, so that padding on the right changes nothing.
        everything = torch.ones_like(steps.mask)
        hidden = hidden_states(self.llm, embeds, everything, window=self.attention_window)
        audio_logits = self.speech_logits(hidden, steps.codes)
        return DuplexOutput(
            text_logits=head_logits(self.llm, hidden[steps.mask]),
            text_labels=steps.text_labels[steps.mask],
            audio_logits=audio_logits[steps.mask],
            code_labels=steps.code_labels.transpose(1, 2)[steps.mask],
            mask=steps.mask,
        )

    # -- frame by frame ---------------------------------------------------------------------------

    def start(
        self, batch_size: int, generation: DuplexGeneration, *, num_frames: int | None = None
    ) -> DecodingState:
        """Begin a conversation of `batch_size` rows, of `num_frames` frames where that is known."""
        device = self.silence_codes.device
        return DecodingState(
            llm_cache=init_cache(self.llm, window=self.attention_window),
            speech_cache=self.init_speech_cache(batch_size, generation, num_frames),
            text=torch.full((batch_size,), self.ids.pad, device=device),
            codes=torch.full((batch_size, self.num_codebooks), self.speech_delay_id, device=device),
            draws=FrameDraws(generation, batch_size),
        )

    @torch.no_grad()
    def step(self, source: Tensor, state: DecodingState) -> tuple[Tensor, Tensor]:
        """Hear one frame and go on.

        Args:
            source: the user's frame (B, D), as `encode_source` gives it.
            state: of the conversation; it moves on by one frame.

        Returns:
            text tokens (B,) of the next frame and codes (B, K) of this one, control codes included.
        """
        embeds = self.embed_inputs(source[:, None], state.text[:, None], state.codes[:, :, None])
        hidden = next_hidden_states(self.llm, embeds, state.llm_cache)
        speech_logits = self.next_speech_logits(hidden, state)
        state.text, state.codes = state.draws.draw(
            head_logits(self.llm, hidden[:, 0]), speech_logits
        )
        state.num_frames += 1
        return state.text, state.codes

    def playable(self, codes: Tensor) -> Tensor:
        """Codes (B, K, F) with silence in the frames that hold a control code."""
        control = (codes >= self.codebook_size).any(dim=1, keepdim=True)
        return torch.where(control, self.silence_codes[None, :, None], codes)


def check_grid(counter: FrameCounter, codec: Codec) -> None:
    """Refuse a codec whose frames are not as long as those of perception.

    Raises:
        ValueError: with both lengths.
    """
    ours, theirs = counter.samples_per_frame, codec.downsampling_ratio
    if ours * codec.sample_rate != theirs * counter.sample_rate:
        raise ValueError(
            "codec and perception must have frames of the same length, but the codec has "
            f"{theirs} samples at {codec.sample_rate} Hz ({1000 * theirs / codec.sample_rate:.2f} "
            f"ms) and perception {ours} at {counter.sample_rate} Hz "
            f"({1000 * ours / counter.sample_rate:.2f} ms)."
        )


def silence_codes(codec: Codec) -> Tensor:
    """Codes (K,) of a frame in the middle of silence."""
    silence = torch.zeros(1, codec.num_channels, 8 * codec.downsampling_ratio)
    return codec.encode(silence)[0][0, :, 4]
