"""The network of SALM: perception frames written into the embeddings of an LLM."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from whalesong.modules.frames import FrameCounter
from whalesong.modules.llm import head_logits, hidden_states
from whalesong.modules.perception import encode_audio, settle_modes


@dataclass
class LMOutput:
    """Logits of the supervised positions only, aligned with their targets.

    Attributes:
        logits: (number of targets, V).
        targets: (number of targets,).
    """

    logits: Tensor
    targets: Tensor


class SALMModel(nn.Module):
    """Composition of perception and LLM; single device, no trainer.

    Args:
        llm: Hugging Face causal LM, with or without LoRA.
        perception: NeMo's `AudioPerceptionModule` whose output is as wide as the LLM's embeddings.
        counter: frame counter of `perception`, with the cutting of long audio.
    """

    def __init__(
        self, *, llm: PreTrainedModel, perception: nn.Module, counter: FrameCounter
    ) -> None:
        super().__init__()
        self.llm = llm
        self.perception = perception
        self.counter = counter

    def train(self, mode: bool = True) -> "SALMModel":
        """Frozen parts stay in evaluation mode: no dropout, dither or BatchNorm statistics."""
        super().train(mode)
        settle_modes(self.llm, self.perception, training=mode)
        return self

    def embed(
        self, input_ids: Tensor, audio_mask: Tensor, audio: Tensor, audio_lens: Tensor
    ) -> Tensor:
        """Embed text and write the audio frames at their placeholders.

        Args:
            input_ids: (B, T); ids at audio frames are not looked up.
            audio_mask: (B, T), True at audio frames, in the reading order of `audio`.
            audio: waveforms (A, N), fp32; A may be 0.
            audio_lens: (A,).

        Returns:
            (B, T, D).

        Raises:
            ValueError: the number of placeholders is not the number of frames.
        """
        embeds = self.llm.get_input_embeddings()(input_ids.masked_fill(audio_mask, 0))
        if len(audio) == 0:
            return embeds + self._idle_perception(embeds)
        frames = encode_audio(self.perception, audio, audio_lens, self.counter)
        if int(audio_mask.sum()) != len(frames):
            raise ValueError(
                f"`audio_mask` must mark one position per audio frame ({len(frames)}), "
                f"but marks {int(audio_mask.sum())} instead."
            )
        return embeds.masked_scatter(audio_mask[:, :, None], frames.to(embeds.dtype))

    def forward(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        audio_mask: Tensor,
        labels: Tensor,
        audio: Tensor,
        audio_lens: Tensor,
    ) -> LMOutput:
        """Predict the supervised tokens.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), True = keep.
            audio_mask: (B, T), True at audio frames.
            labels: (B, T), the token that follows each position, -100 where none is supervised.
            audio: waveforms (A, N).
            audio_lens: (A,).
        """
        embeds = self.embed(input_ids, audio_mask, audio, audio_lens)
        hidden = hidden_states(self.llm, embeds, attention_mask)
        supervised = labels != -100
        return LMOutput(head_logits(self.llm, hidden[supervised]), labels[supervised])

    @torch.no_grad()
    def generate(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor,
        audio_mask: Tensor,
        audio: Tensor,
        audio_lens: Tensor,
        generation_config: GenerationConfig,
        streamer: BaseStreamer | None = None,
    ) -> Tensor:
        """Answer left-padded prompts with the LLM's own decoding loop and KV cache.

        Runs in evaluation mode and leaves every module in the mode it was in.

        Returns:
            Token ids after the prompt (B, T'), filled with the pad id after each row's end.
        """
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            return self.llm.generate(
                inputs_embeds=self.embed(input_ids, audio_mask, audio, audio_lens),
                attention_mask=attention_mask.long(),
                generation_config=generation_config,
                streamer=streamer,
                # Each step gathers weights: ranks whose rows have ended go on with the others.
                synced_gpus=isinstance(self, FSDPModule),
            )
        finally:
            for module, training in modes:
                module.training = training

    def _idle_perception(self, embeds: Tensor) -> Tensor | float:
        """Zero that depends on every trained weight of perception.

        A rank whose batch holds no audio would otherwise leave the others waiting for gradients.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.training and distributed):
            return 0.0
        silence = torch.zeros(1, self.counter.min_samples, device=embeds.device)
        lens = torch.full((1,), silence.shape[1], device=embeds.device)
        return 0.0 * encode_audio(self.perception, silence, lens, self.counter).sum().to(
            embeds.dtype
        )
