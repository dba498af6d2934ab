"""The `conditioning` section of a model: which conditioners there are; light to import."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from whalesong.modules.conditioning.config import CONDITIONERS, ConditionerFields

AnyModel = TypeVar("AnyModel", bound=BaseModel)


class ConditionerSection(BaseModel):
    """One conditioner."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    id: str = Field(pattern=r"^[\w-]+$")
    """Its name, and the key of its values in the metadata of a row."""
    type: str
    """One of `CONDITIONERS`."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of its type."""
    dropout: float = Field(0.0, ge=0, le=1)
    """Probability that a row loses this condition in training."""


class ConditioningSection(BaseModel):
    """All conditioners of a model."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    configs: list[ConditionerSection]
    """The conditioners."""
    cond_dim: int | None = Field(None, gt=0)
    """Width of all conditions without an `output_dim` of their own; null takes the model's."""
    default_keys: dict[str, str] = Field(default_factory=dict)
    """id -> key of the metadata that is read where the id itself is missing."""
    pre_encoded_keys: list[str] = Field(default_factory=list)
    """ids whose values are embeddings (S, C) already."""
    dropout: float = Field(0.0, ge=0, le=1)
    """Probability that a row loses all conditions in training, for guidance."""

    @model_validator(mode="after")
    def _ids(self) -> "ConditioningSection":
        ids = [item.id for item in self.configs]
        for name in ids:
            if ids.count(name) > 1:
                raise ValueError(f"`configs` must have distinct ids, but has '{name}' twice")
        for key, named in (
            ("default_keys", self.default_keys),
            ("pre_encoded_keys", self.pre_encoded_keys),
        ):
            for name in named:
                if name not in ids:
                    raise ValueError(
                        f"`{key}` names '{name}', but `configs` has no such id{nearest(name, ids)}"
                    )
        return self


def _with_checked_fields(section: ConditioningSection) -> ConditioningSection:
    for item in section.configs:
        parse_item(item)
    return section


CheckedConditioning = Annotated[ConditioningSection, AfterValidator(_with_checked_fields)]
"""A section in which the fields of each conditioner are checked by its type, too."""


def check_conditioning(section: Mapping[str, Any] | None) -> list[str]:
    """Check a whole section without building anything of it.

    Returns:
        The ids of its conditioners; none for None.

    Raises:
        ValueError: one sentence that names the field.
    """
    if section is None:
        return []
    ids = []
    for item in parse_section(section).configs:
        parse_item(item)
        ids.append(item.id)
    return ids


def parse_section(section: Mapping[str, Any]) -> ConditioningSection:
    """The section as a model.

    Raises:
        ValueError: one sentence that names the field.
    """
    return _parse(ConditioningSection, section, place="conditioning")


def parse_item(item: ConditionerSection) -> ConditionerFields:
    """The fields of one conditioner of a section.

    Raises:
        ValueError: one sentence that names the conditioner and the field.
    """
    try:
        return parse_fields(item.type, item.config)
    except ValueError as error:
        raise ValueError(f"conditioner '{item.id}': {error}") from None


def parse_fields(type: str, fields: Mapping[str, Any]) -> ConditionerFields:  # noqa: A002
    """The fields of a type as its model.

    Raises:
        ValueError: an unknown type, or one sentence that names the field.
    """
    if type not in CONDITIONERS:
        raise ValueError(f"Unknown conditioner type: {type}{nearest(type, CONDITIONERS)}")
    return _parse(CONDITIONERS[type], fields, place=type)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing where no known name is near."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean '{found[0]}'?" if found else ""


def _parse(model: type[AnyModel], data: Mapping[str, Any], *, place: str) -> AnyModel:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
        problem = [*unknown, *problems][0]
        nested = len(problem["loc"]) > 1
        known = (ConditionerSection if nested else model).model_fields
        raise ValueError(_sentence(problem, place=place, known=known)) from None


def _sentence(problem: Any, *, place: str, known: Iterable[str]) -> str:
    """What pydantic found, as one sentence with the field and its value."""
    path = ".".join([place, *map(str, problem["loc"])])
    if problem["type"] == "value_error" and not problem["loc"]:
        return f"{problem['ctx']['error']}."
    if problem["type"] == "extra_forbidden":
        near = nearest(str(problem["loc"][-1]), known)
        return f"`{path}` is not a known field{near or '.'}"
    if problem["type"] == "missing":
        return f"`{path}` is mandatory, but is missing."
    rule = problem["msg"].removeprefix("Input ")
    return f"`{path}` {rule[0].lower()}{rule[1:]}, but is {problem['input']!r}."
