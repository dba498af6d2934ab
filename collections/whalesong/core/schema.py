"""Strict config schemas: every error is one sentence that names the YAML path.

A section of the YAML is declared as a subclass of `Schema` and checked with `validate`:

    class LoraConfig(Schema):
        r: int = Field(8, gt=0)
        \"\"\"Rank of the update.\"\"\"

    validate(LoraConfig, {"rr": 8}, path="model.lora")
    # ConfigError: `model.lora.rr` (8) is not a known key; did you mean `r`?
"""

import json
from collections.abc import Iterator
from enum import Enum
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from whalesong.core.config.schema_errors import (
    Problem,
    interpolation_sentence,
    join_problems,
    problems_of,
)
from whalesong.core.errors import ConfigError

MISSING = "???"
"""The value of a key that the user must set."""


class Schema(BaseModel):
    """Base of all config sections: unknown keys and values of another YAML type are refused.

    A number is finite. An int is taken where a float is meant; a bool is never a number and a
    quoted number is a string. A list becomes a tuple, a string becomes a path or an enum where the
    field says so. A docstring under a field is its description in the JSON Schema. A validator that
    raises `ValueError("must divide `d_model` (256), but is 3 instead")` gets the path put before
    it.
    """

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
    )


def validate(schema: Any, data: Any, *, path: str = "", partial: bool = False) -> Any:
    """Check a config section and return it as an instance of its schema.

    Args:
        schema: a `Schema` subclass, or any type pydantic knows (a union, `list[Item]`).
        data: a plain dict or list, or an OmegaConf config (its interpolations are resolved),
            or one in the other. The value is not changed.
        path: where the section stands in the whole YAML, for example "data.train_ds".
        partial: mandatory keys may be missing; without them nothing is returned.

    Raises:
        ConfigError: one sentence: the YAML path, what was given, what is allowed, the nearest
            known key; further errors are counted and their paths listed.
    """
    plain = _plain(data, path)
    problems = [Problem(place, "is mandatory, but has no value") for place in _missing(plain)]
    document, instance = _without_missing(plain), None
    try:
        instance = TypeAdapter(schema).validate_json(json.dumps(document))
    except ValidationError as error:
        problems += problems_of(error.errors(include_url=False), schema=schema, data=document)
    if partial:
        problems = [problem for problem in problems if problem.kind != "missing"]
    if problems:
        raise ConfigError(join_problems(problems, prefix=path))
    return instance


def resolved(cfg: Any) -> Any:
    """A copy of an OmegaConf config without interpolations.

    Raises:
        ConfigError: one of them leads nowhere, or to a value that is not given.
    """
    from omegaconf import OmegaConf

    return OmegaConf.create(_container(cfg, ""))


def json_schema(schema: Any) -> dict[str, Any]:
    """The JSON Schema of a config section, with which editors complete and check the YAML.

    Interpolations (`${name}`) and `???` are allowed in place of any value.
    """
    exported = _allow_interpolation(TypeAdapter(schema).json_schema())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **exported}


def _container(data: Any, path: str) -> Any:
    """Turn an OmegaConf config into plain containers; plain data passes through."""
    if not type(data).__module__.startswith("omegaconf."):
        return data
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(data, resolve=True, throw_on_missing=False)
    except OmegaConfBaseException as error:
        raise ConfigError(interpolation_sentence(error, path=path)) from error


def _plain(value: Any, path: str) -> Any:
    """Copy nested data to what JSON can hold, with string keys."""
    value = _container(value, path)
    if isinstance(value, dict):
        return {str(key): _plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = type(value).__name__
    raise ConfigError(f"`{path.lstrip('.')}` must be a plain YAML value, but is of class {kind}.")


def _missing(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the place of every value that is still `???`."""
    if value == MISSING:
        yield place
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _missing(item, (*place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _missing(item, (*place, index))


def _without_missing(value: Any) -> Any:
    """Drop the keys whose value is `???`; list items stay, for they carry an index."""
    if isinstance(value, dict):
        return {key: _without_missing(item) for key, item in value.items() if item != MISSING}
    if isinstance(value, list):
        return [_without_missing(item) for item in value]
    return value


def _allow_interpolation(node: Any) -> Any:
    """Let every value that is not a string be an interpolation, too."""
    if isinstance(node, list):
        return [_allow_interpolation(item) for item in node]
    if not isinstance(node, dict):
        return node
    out = {key: _allow_interpolation(item) for key, item in node.items()}
    if out.get("type") not in ("integer", "number", "boolean", "array") and "enum" not in out:
        return out
    about = {key: out.pop(key) for key in ("default", "description", "title") if key in out}
    reference = {"type": "string", "pattern": r"^(\?\?\?|.*\$\{.+\}.*)$"}
    return {**about, "anyOf": [out, reference]}
