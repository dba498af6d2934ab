"""A NeMo `ConformerEncoder` on frames that come piece by piece; it keeps no state, its stream does.

NeMo's cached forward gives the same frames, but for each of them it projects the whole left context
to keys, values and positions again, and it reads what `setup_streaming_params` left in the layers.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Stage = Callable[[Tensor, bool], Tensor]
"""Maps frames that came, (1, f, D), and whether they are the last, to those that are settled."""


class Groups:
    """Passes on whole groups of frames; the rest waits for more.

    Args:
        size: frames of a group.
        keep_rest: pass on what is left at the end, else drop it.
    """

    def __init__(self, size: int, *, keep_rest: bool) -> None:
        self.size = size
        self.keep_rest = keep_rest
        self._rest: Tensor | None = None

    def __call__(self, frames: Tensor, last: bool) -> Tensor:
        """Map frames (1, f, D) to those of whole groups."""
        if self._rest is not None:
            frames = torch.cat([self._rest, frames], dim=1)
        whole = frames.shape[1] - frames.shape[1] % self.size
        if last and self.keep_rest:
            whole = frames.shape[1]
        self._rest = frames[:, whole:].clone()
        return frames[:, :whole]


class ConformerStream:
    """A Conformer whose frames see a bounded past and no future, or none behind their chunk.

    Args:
        encoder: NeMo's `ConformerEncoder`, as encoder or as modality adapter, in evaluation mode.
        path: of its section in the YAML, for the errors.
        taps: layers whose output is given too, in front of the final one and joined along D.
        with_final: give the final output.

    Raises:
        ValueError: a setting with which frames would depend on what is still to come, or on all
            that was.
    """

    def __init__(
        self, encoder: nn.Module, path: str, *, taps: Sequence[int] = (), with_final: bool = True
    ) -> None:
        check_streamable(encoder, path)
        left, right = encoder.att_context_size
        self._encoder = encoder
        self._chunk = right + 1
        self._taps, self._with_final = taps, with_final
        self._front = [*front_stages(encoder), Groups(self._chunk, keep_rest=True)]
        self._layers = [_LayerStream(layer, left, self._chunk) for layer in encoder.layers]
        self._left = left
        self._num_frames = 0

    def __call__(self, frames: Tensor, last: bool) -> Tensor:
        """Map features (1, t, D_in) to the settled frames (1, f, D)."""
        for stage in self._front:
            frames = stage(frames, last)
        return self._layers_of(self._with_positions(frames))

    def _with_positions(self, x: Tensor) -> Tensor:
        """Scale the frames and, without relative positions, add absolute ones."""
        encoder = self._encoder
        if encoder.xscale:
            x = x * encoder.xscale
        if encoder.self_attention_model == "abs_pos":
            begin = self._num_frames
            positions = torch.arange(begin, begin + x.shape[1], device=x.device)
            x = x + sinusoids(positions, x.shape[2]).to(x.dtype)
        return x

    def _layers_of(self, x: Tensor) -> Tensor:
        """Run the layers and join the outputs that are asked for."""
        project = self._encoder.out_proj or nn.Identity()
        entries, is_hidden = self._view(x.shape[1], x.device)
        outputs = []
        for index, layer in enumerate(self._layers):
            x = layer(x, entries, is_hidden) if x.shape[1] else x
            if index in self._taps:
                outputs.append(project(x))
        self._num_frames += x.shape[1]
        if self._with_final:
            outputs.append(project(x))
        return torch.cat(outputs, dim=2)

    def _view(self, num_new: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Which entry of the table of positions stands between each new frame and each that is kept
        or new, and which of these it does not see: both (f, kept + f)."""
        total = min(self._num_frames, self._left) + num_new
        keys = torch.arange(total, device=device)
        queries = keys[total - num_new :, None]
        chunks = queries // self._chunk - keys // self._chunk
        is_hidden = (chunks < 0) | (chunks > self._left // self._chunk)
        return (queries - keys + self._chunk - 1).masked_fill(is_hidden, 0), is_hidden


class _LayerStream:
    """One `ConformerLayer` with the keys, values and convolution inputs of its past."""

    def __init__(self, layer: nn.Module, left: int, chunk: int) -> None:
        self._layer = layer
        self._left, self._chunk = left, chunk
        attention, convolution = layer.self_attn, layer.conv.depthwise_conv
        weight = convolution.weight
        self._keys = weight.new_zeros(1, attention.h, 0, attention.d_k)
        self._values = self._keys
        self._past = weight.new_zeros(1, convolution.kernel_size[0] - 1, len(weight))
        self._table = self._position_keys() if hasattr(attention, "linear_pos") else None

    def __call__(self, x: Tensor, entries: Tensor, is_hidden: Tensor) -> Tensor:
        """Map frames (1, f, D); what they see is told by `ConformerStream`."""
        layer = self._layer
        x = x + layer.fc_factor * layer.feed_forward1(layer.norm_feed_forward1(x))
        x = x + self._attend(layer.norm_self_att(x), entries, is_hidden)
        x = x + self._convolve(layer.norm_conv(x))
        x = x + layer.fc_factor * layer.feed_forward2(layer.norm_feed_forward2(x))
        return layer.norm_out(x)

    def _position_keys(self) -> Tensor:
        """What the distances from `1 - chunk` to `left + chunk - 1` are to queries: (H, d_k, M)."""
        attention = self._layer.self_attn
        weight = attention.linear_pos.weight
        distances = torch.arange(1 - self._chunk, self._left + self._chunk, device=weight.device)
        embedded = sinusoids(distances, weight.shape[1]).to(weight.dtype)
        with torch.no_grad():
            return attention.linear_pos(embedded).unflatten(1, (attention.h, -1)).permute(1, 2, 0)

    def _attend(self, x: Tensor, entries: Tensor, is_hidden: Tensor) -> Tensor:
        attention = self._layer.self_attn
        queries, keys, values = attention.forward_qkv(x, x, x)  # (1, H, f, d_k)
        keys = torch.cat([self._keys, keys], dim=2)
        values = torch.cat([self._values, values], dim=2)
        scores = torch.zeros(is_hidden.shape, dtype=x.dtype, device=x.device)
        if self._table is not None:
            scores = self._position_scores(queries + attention.pos_bias_v[:, None], entries)
            queries = queries + attention.pos_bias_u[:, None]
        scores = scores.masked_fill(is_hidden, -math.inf)
        out = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=scores)
        first = max(keys.shape[2] - self._left, 0)
        self._keys, self._values = keys[:, :, first:], values[:, :, first:]
        return attention.linear_out(out.transpose(1, 2).flatten(2))

    def _position_scores(self, queries: Tensor, entries: Tensor) -> Tensor:
        scores = queries @ self._table / math.sqrt(queries.shape[3])
        return scores.gather(3, entries.expand(1, len(self._table), -1, -1))

    def _convolve(self, x: Tensor) -> Tensor:
        # As products of matrices: for a frame at a time, `conv1d` takes several times as long.
        module = self._layer.conv
        depthwise = module.depthwise_conv
        x = functional.glu(_pointwise(module.pointwise_conv1, x), dim=2)
        x = torch.cat([self._past, x], dim=1)
        kernel = depthwise.kernel_size[0]
        self._past = x[:, x.shape[1] - kernel + 1 :]
        x = (x.unfold(1, kernel, 1) * depthwise.weight[:, 0]).sum(dim=3)  # (1, f, D)
        x = x if depthwise.bias is None else x + depthwise.bias
        if module.norm_type == "layer_norm":
            x = module.batch_norm(x)
        else:
            x = module.batch_norm(x.transpose(1, 2)).transpose(1, 2)
        return _pointwise(module.pointwise_conv2, module.activation(x))


def _pointwise(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """A convolution of kernel 1 on frames (1, f, D)."""
    return functional.linear(x, conv.weight[:, :, 0], conv.bias)


class ConvSubsamplingStream:
    """NeMo's `ConvSubsampling` by strided convolutions, a frame as soon as its inputs are there.

    Args:
        front: the module; `striding` or `dw_striding`, causal or not: what a frame sees of the
            future is less than its own length.
    """

    def __init__(self, front: nn.Module) -> None:
        self._out = front.out
        layers = list(front.conv)
        begins = [i for i, layer in enumerate(layers) if getattr(layer, "stride", 1) == (2, 2)]
        ends = [*begins[1:], len(layers)]
        self._stages = [
            _StridedConvStream(layers[begin], layers[begin + 1 : end])
            for begin, end in zip(begins, ends, strict=True)
        ]

    def __call__(self, features: Tensor, last: bool) -> Tensor:
        """Map features (1, t, C) to frames (1, f, D)."""
        x = features.unsqueeze(1)
        for stage in self._stages:
            x = stage(x, last)
        return self._out(x.transpose(1, 2).flatten(2))


class _StridedConvStream:
    """A strided convolution over time and frequency, and the pointwise layers behind it."""

    def __init__(self, conv: nn.Conv2d, pointwise: Sequence[nn.Module]) -> None:
        self._conv, self._pointwise = conv, pointwise
        causal = hasattr(conv, "_left_padding")
        symmetric = conv.padding[0]
        self._left = conv._left_padding if causal else symmetric
        self._right = conv._right_padding if causal else symmetric
        self._rows: Tensor | None = None

    def __call__(self, x: Tensor, last: bool) -> Tensor:
        """Map rows (1, C, t, W) to those that are settled, (1, C', t', W')."""
        conv, kernel, stride = self._conv, self._conv.kernel_size[0], self._conv.stride[0]
        x = functional.pad(x, (self._left, self._right))
        if self._rows is None:
            self._rows = x.new_zeros(*x.shape[:2], self._left, x.shape[3])
        x = torch.cat([self._rows, x], dim=2)
        if last:
            x = functional.pad(x, (0, 0, 0, self._right))
        count = max((x.shape[2] - kernel) // stride + 1, 0)
        self._rows = x[:, :, count * stride :].clone()
        if count == 0:
            return x.new_zeros(1, conv.out_channels, 0, (x.shape[3] - kernel) // stride + 1)
        x = functional.conv2d(x, conv.weight, conv.bias, conv.stride, groups=conv.groups)
        for layer in self._pointwise:
            x = layer(x)
        return x


def front_stages(encoder: nn.Module) -> list[Stage]:
    """What a Conformer does before its layers: nothing but a projection, stacking or convolving."""
    front = encoder.pre_encode
    if isinstance(front, nn.Linear):
        return [each(front)]
    if hasattr(front, "_sampling_num"):
        return [ConvSubsamplingStream(front)]

    def stack(frames: Tensor, last: bool) -> Tensor:
        lens = torch.tensor([frames.shape[1]], device=frames.device)
        return front(x=frames, lengths=lens)[0]

    return [Groups(front.subsampling_factor, keep_rest=False), stack]


def each(module: nn.Module) -> Stage:
    """A stage that maps each frame by itself."""

    def stage(frames: Tensor, last: bool) -> Tensor:
        return module(frames)

    return stage


def check_streamable(encoder: nn.Module, path: str) -> None:
    """Refuse a Conformer whose frames stay unsettled for long, or that see all of the past.

    Raises:
        ValueError: names the first such setting below `path`, and what it must be.
    """
    norm = encoder.layers[0].conv.norm_type
    front = getattr(encoder.pre_encode, "_subsampling", "stacking")
    for name, value, choices in (
        ("att_context_style", encoder.att_context_style, ("regular", "chunked_limited")),
        ("self_attention_model", encoder.self_attention_model, ("rel_pos", "abs_pos")),
        ("conv_norm_type", norm, ("layer_norm", "batch_norm", "fused_batch_norm")),
        ("subsampling", front, ("striding", "dw_striding", "stacking")),
    ):
        _require(value in choices, f"{path}.{name}", " or ".join(choices), value)
    left, right = encoder.att_context_size
    rule, holds = "[left, 0] with 0 <= left", left >= 0 and right == 0
    if encoder.att_context_style == "chunked_limited":
        rule, holds = "[left, right] with 0 <= left and 0 <= right", left >= 0 and right >= 0
    _require(holds, f"{path}.att_context_size", rule, [left, right])
    past, conv = [encoder.conv_kernel_size - 1, 0], list(encoder.conv_context_size)
    _require(conv == past, f"{path}.conv_context_size", "causal", conv)
    reduction = encoder.reduction_subsampling
    _require(reduction is None, f"{path}.reduction", "null", type(reduction).__name__)


def _require(holds: bool, setting: str, rule: str, value: object) -> None:
    if not holds:
        raise ValueError(f"`{setting}` must be {rule} to stream, but is {value}.")


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """NeMo's sinusoidal embeddings of whole-number positions (M,): (M, width)."""
    steps = torch.arange(0, width, 2, device=positions.device)
    angles = positions[:, None] * torch.exp(steps * -(math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
