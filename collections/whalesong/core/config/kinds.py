"""Kinds of values that several config sections have: numbers with bounds, times."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]

MAX_WIDTH = 2**20
"""Features, heads, positions: more is a mistake, and could not be allocated."""
MAX_LAYERS = 4096
Width = Annotated[int, Field(gt=0, le=MAX_WIDTH)]
Layers = Annotated[int, Field(gt=0, le=MAX_LAYERS)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What all random generators take."""

MAX_PROCESSES = 4096
"""What no count of processes or devices of one machine exceeds but by mistake."""


def _batch_limit(value: int | float) -> int | float:
    if value < 0 or (isinstance(value, float) and value > 1):
        raise ValueError(
            "must be a number of batches (an integer), or a share of them between 0 and 1, but is "
            f"{value}"
        )
    return value


def _batch_interval(value: int | float) -> int | float:
    if value <= 0 or (isinstance(value, float) and value > 1):
        raise ValueError(
            "must be a number of batches from 1 on (an integer), or a share of an epoch above 0 "
            f"and up to 1, but is {value}"
        )
    return value


def _time(value: str) -> str:
    if not re.fullmatch(r"\d{1,6}:[0-2]?\d:[0-5]?\d:[0-5]?\d", value):
        raise ValueError(f"must be a time as DD:HH:MM:SS, but is {value!r:.60}")
    return value


def _class_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", value):
        raise ValueError(f"must be the dotted name of a class, but is {value!r:.80}")
    return value


BatchLimit = Annotated[int | float, AfterValidator(_batch_limit)]
"""A number of batches, or a share of them."""
BatchInterval = Annotated[int | float, AfterValidator(_batch_interval)]
"""Batches from one event to the next, or a share of an epoch."""
Time = Annotated[str, AfterValidator(_time)]
"""DD:HH:MM:SS."""
ClassName = Annotated[str, AfterValidator(_class_name)]
"""`package.module.Class`."""
