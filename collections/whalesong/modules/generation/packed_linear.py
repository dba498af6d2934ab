"""Linear layers for a few rows at a time, with weights packed once for that.

At generation a matrix is read once for very few rows, and what is fastest then on the CPU is never
what training does: for small matrices and single rows the transposed matrix, for large ones the
blocks of oneDNN, or without a copy the matrix times columns. All give the same sums.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

WeightDtype = Literal["float32", "bfloat16", "float16", "int8"]


LARGE = 2**19
"""Elements from which on a call of oneDNN, some 40 microseconds, is paid back."""

COARSE_LEVELS = 63
"""Of the coarse integers, on each side of 0."""


class PackedLinear(Protocol):
    """A linear layer for a fixed number of rows R."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O)."""

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O) and add `residual` (R, O)."""


def pack_linear(
    linear: nn.Module,
    *,
    num_rows: int,
    scale: Tensor | None = None,
    weight_dtype: WeightDtype | None = None,
    copy_large: bool = True,
) -> PackedLinear:
    """Pack a linear layer, its LoRA included; the layer itself stays as it is.

    Args:
        linear: an `nn.Linear`, or one with LoRA around it.
        num_rows: R, rows that will come at a time.
        scale: (O,), factors of the outputs.
        weight_dtype: stores weights shorter than they are, and so gives other numbers; "bfloat16"
            and "int8" also round the inputs, each row by itself. None keeps them.
        copy_large: copy large matrices into the layout that is the fastest; the copies take some
            time and the memory of all weights once more.

    Raises:
        ValueError: this weight dtype does not exist for the device.
    """
    weight, bias = effective_weight(linear)
    if scale is not None:
        weight, bias = weight * scale[:, None], None if bias is None else bias * scale
    if weight_dtype == "bfloat16":
        return PlainLinear(weight.bfloat16(), bias)
    if weight_dtype in ("float16", "int8"):
        if weight.device.type != "cpu":
            raise ValueError(f"`weight_dtype` '{weight_dtype}' must be used on the CPU, but the "
                             f"model is on {weight.device}.")  # fmt: skip
        if weight_dtype == "float16":
            return HalfLinear(weight, bias)
        if weight.numel() >= LARGE and IntegerLinear.is_available():
            return IntegerLinear(weight, bias)
        return ByteLinear(weight, bias)
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return PlainLinear(weight.float() if weight_dtype == "float32" else weight, bias)
    if weight.numel() < LARGE:
        return TransposedLinear(weight, bias)
    if not copy_large:
        return ColumnLinear(weight, bias)
    if num_rows > 1 and torch.backends.mkldnn.is_available():
        return BlockedLinear(weight, bias, num_rows)
    return TransposedLinear(weight, bias)


@torch.no_grad()
def effective_weight(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight (O, I) and bias (O,) of a linear layer with LoRA added in."""
    if not hasattr(linear, "get_delta_weight"):
        return linear.weight, linear.bias
    base = linear.base_layer
    if linear.merged:
        return base.weight, base.bias
    deltas = [linear.get_delta_weight(name) for name in linear.active_adapters]
    return base.weight + sum(deltas), base.bias


class PlainLinear:
    """The weights as they are; inputs are brought to their dtype, outputs back."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.detach(), bias

    def __call__(self, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O)."""
        dtype = self.weight.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return functional.linear(x.to(dtype), self.weight, bias).to(x.dtype)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O) and add `residual` (R, O)."""
        return residual + self(x)


class TransposedLinear:
    """Rows times a transposed matrix."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.detach().t().contiguous(), bias

    def __call__(self, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O)."""
        if self.bias is None:
            return torch.mm(x, self.weight)
        return torch.addmm(self.bias, x, self.weight)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O) and add `residual` (R, O)."""
        if self.bias is not None:
            residual = residual + self.bias
        return torch.addmm(residual, x, self.weight)


class ColumnLinear:
    """The matrix as it is times columns, which with few of them is faster than rows times it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.detach(), None if bias is None else bias[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O)."""
        if self.bias is None:
            return torch.mm(self.weight, x.t()).t().contiguous()
        return torch.addmm(self.bias, self.weight, x.t()).t().contiguous()

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O) and add `residual` (R, O)."""
        if self.bias is not None:
            residual = residual + self.bias[:, 0]
        return torch.addmm(residual.t(), self.weight, x.t()).t().contiguous()


class BlockedLinear:
    """A matrix in the blocks that oneDNN wants for this number of rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None, num_rows: int) -> None:
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), num_rows)
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O) and add `residual` (R, O)."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")


class HalfLinear:
    """Weights in half precision, multiplied in fp32."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        bias = None if bias is None else bias.detach().float()
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight.detach().float(), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O)."""
        return torch.ops.quantized.linear_dynamic_fp16(x.float(), self._packed).to(x.dtype)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O) and add `residual` (R, O)."""
        return residual + self(x)


class ByteLinear:
    """Weights in 8 bits with a factor for each output, inputs rounded to bf16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.detach().float()
        scales = (weight.abs().amax(dim=1) / 127).clamp_min(1e-12)
        self._weight = (weight / scales[:, None]).round().to(torch.int8)
        self._scales, self._bias = scales.bfloat16(), bias

    def __call__(self, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O)."""
        out = torch._weight_int8pack_mm(x.bfloat16(), self._weight, self._scales).to(x.dtype)
        return out if self._bias is None else out + self._bias

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O) and add `residual` (R, O)."""
        return residual + self(x)


class IntegerLinear:
    """Weights in 8 bits with a factor for each output, multiplied as integers.

    An input goes as two integers of 7 bits, a coarse one and what it leaves, in units that belong
    to its row. Sums of so many bits do not overflow anywhere.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.detach().float()
        scales = (weight.abs().amax(dim=1) / 127).clamp_min(1e-12).double()
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with _fbgemm():
            whole = torch.quantize_per_channel(weight, scales, zeros, axis=0, dtype=torch.qint8)
            self._packed = torch.ops.quantized.linear_prepack(whole, None)
        self._bias = bias

    @staticmethod
    def is_available() -> bool:
        """Whether this processor and this version of torch, which may drop it, have it."""
        return (
            "fbgemm" in torch.backends.quantized.supported_engines
            and hasattr(torch, "quantize_per_channel")
            and hasattr(torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32")
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O)."""
        units = x.abs().amax(dim=1, keepdim=True).clamp_min_(1e-12).div_(COARSE_LEVELS)
        scaled = x / units
        coarse = scaled.round()
        fine = scaled.sub_(coarse).mul_(2 * COARSE_LEVELS)
        both = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            torch.cat((coarse, fine)), 1.0, COARSE_LEVELS + 1, self._packed
        )
        coarse, fine = both.chunk(2)
        out = torch.add(coarse, fine, alpha=0.5 / COARSE_LEVELS).mul_(units)
        return out if self._bias is None else out.add_(self._bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Map (R, I) to (R, O) and add `residual` (R, O)."""
        return residual + self(x)


@contextmanager
def _fbgemm() -> Iterator[None]:
    """Pack for fbgemm inside, without a word that torch will drop such tensors one day."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
            yield
    finally:
        torch.backends.quantized.engine = before
