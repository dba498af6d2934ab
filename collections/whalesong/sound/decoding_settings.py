"""What the `generation` sections of models of codes have in common."""

from typing import Literal

from pydantic import Field

from whalesong.core.schema import Schema


class DecodingSettings(Schema):
    """How codes are drawn, and with which weights."""

    temperature: float = Field(1.0, ge=0)
    """Of codes that are generated step by step; 0 takes the most probable one."""
    top_k: int = Field(0, ge=0)
    """Only the most probable codes; 0 for all."""
    top_p: float = Field(0.0, ge=0, le=1)
    """Only the smallest set of codes with this probability; 0 for all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Only codes with at least this share of the greatest probability."""
    compile: Literal["auto", "never"] = "auto"
    """auto captures a step as one CUDA graph on a GPU."""
    weight_dtype: Literal["float32", "bfloat16", "float16", "int8"] | None = None
    """Precision of the weights in generation; null keeps that of the model. On a CPU float16 and
    int8 make large models more than twice as fast."""
