"""From pydantic's error list to one sentence about a YAML path."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo

Path = tuple[str | int, ...]

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "list_type": "a list",
    "model_type": "a mapping",
    "none_required": "null",
    "path_type": "a path",
    "string_type": "a string",
    "tuple_type": "a list",
}
_UNKNOWN_KEY = "extra_forbidden"
_MAX_LISTED = 40
_MAX_SHOWN = 60


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the place in the YAML and the rest of the sentence after it."""

    path: Path
    text: str
    kind: str = "missing"


@dataclass
class _Found:
    """A pydantic error with its place in the YAML and the union members it went through."""

    error: dict[str, Any]
    path: Path = ()
    annotation: Any = None
    owner: Any = None
    nullable: bool = False
    choices: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        return self.error["type"]


def problems_of(errors: Iterable[Any], *, schema: Any, data: Any) -> list[Problem]:
    """Describe pydantic's errors, at most one for each place in the YAML.

    Args:
        errors: what `ValidationError.errors()` returns.
        schema: the type that was validated against.
        data: the validated document, plain containers.
    """
    found = [_locate(error, schema=schema) for error in errors]
    by_path: dict[Path, list[_Found]] = {}
    for one in _likeliest_members(found):
        by_path.setdefault(one.path, []).append(one)
    return [_describe(group, data=data) for group in by_path.values()]


def join_problems(problems: Sequence[Problem], *, prefix: str = "") -> str:
    """One sentence about the first problem, and the paths of the others.

    An unknown key comes first, for a mistyped key is often the cause of a missing one.
    """
    unique = list({problem.path: problem for problem in reversed(problems)}.values())[::-1]
    unique.sort(key=lambda problem: problem.kind != _UNKNOWN_KEY)
    first, *others = unique
    text = f"`{format_path(first.path, prefix=prefix)}` {first.text}"
    text += "" if text.endswith(("?", ".")) else "."
    if not others:
        return text
    listed = [format_path(other.path, prefix=prefix) for other in others[:5]]
    listed += ["..."] if len(others) > 5 else []
    return f"{text} (and {len(others)} more: {', '.join(listed)})"


def format_path(path: Path, *, prefix: str = "") -> str:
    """Write a path the way it stands in YAML and on the command line: `a.input_cfg[2].type`."""
    text = prefix
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text or "config"


def interpolation_sentence(error: Any, *, path: str = "") -> str:
    """One sentence about OmegaConf's refusal to resolve a value such as `${name}`.

    Args:
        error: an `OmegaConfBaseException`.
        path: the section that was being resolved, if the error does not tell the key.
    """
    text = str(error).splitlines()[0].rstrip(".")
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing:
        return f"`{missing.group(1)}` is mandatory, but has no value."
    return f"`{error.full_key or path or 'config'}` cannot be resolved: {text}."


def near(name: Any, known: Iterable[str]) -> str:
    """The part of a sentence that proposes the nearest known name, or nothing."""
    matches = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean `{matches[0]}`?" if matches else ""


def _locate(error: Any, *, schema: Any) -> _Found:
    """Follow an error's location through the types; drop the parts that name a union member."""
    found = _Found(error=error, annotation=schema)
    found.nullable = _is_nullable(schema)
    for part in error["loc"]:
        members = _members(found.annotation)
        member = _member_of(members, str(part)) if len(members) > 1 else None
        if member is not None:
            found.choices.append((found.path, str(part)))
            found.annotation = member
        elif part != "[key]":
            found.path = (*found.path, part)
            found.owner = found.annotation
            found.annotation = _inner(found.annotation, part)
            found.nullable = _is_nullable(found.annotation)
    return found


def _strip(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Take `Annotated` apart into the type and its metadata."""
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return inner, tuple(metadata)
    return annotation, ()


def _members(annotation: Any) -> list[Any]:
    """The members of a union without None; one member for any other type."""
    bare, _ = _strip(annotation)
    if get_origin(bare) not in (Union, UnionType):
        return [bare]
    members: list[Any] = []
    for member in get_args(bare):
        if member is NoneType:
            continue
        is_union = get_origin(_strip(member)[0]) in (Union, UnionType)
        members.extend(_members(member) if is_union else [member])
    return members


def _member_of(members: list[Any], label: str) -> Any:
    """The union member that pydantic's location calls `label`, or None."""
    for member in members:
        bare, metadata = _strip(member)
        tags = [getattr(item, "tag", None) for item in metadata] + list(_literals(bare))
        name = getattr(bare, "__name__", str(bare)).lower()
        origin = getattr(get_origin(bare), "__name__", name).lower()
        short = label.lower()
        if label in tags or short == name or re.match(rf"({origin}|constrained-{name})\b", short):
            return member
        if get_origin(bare) is Literal and short.startswith("literal["):
            return member
        if "-" in short and name in short:
            return member
    return None


def _literals(bare: Any) -> Iterable[str]:
    """The values of a model's Literal fields: one of them is its tag in a union."""
    if not _is_model(bare):
        return
    for info in bare.model_fields.values():
        if get_origin(info.annotation) is Literal:
            yield from (str(value) for value in get_args(info.annotation))


def _inner(annotation: Any, part: str | int) -> Any:
    """The type of one item or key inside a container type, or None if it is not declared."""
    bare = _strip(_members(annotation)[0])[0] if annotation is not None else None
    if _is_model(bare):
        for name, info in bare.model_fields.items():
            if part in _names(name, info):
                return _with_metadata(info)
        return None
    arguments = get_args(bare)
    if get_origin(bare) is dict:
        return arguments[1]
    if get_origin(bare) is tuple and isinstance(part, int) and Ellipsis not in arguments:
        return arguments[part] if part < len(arguments) else None
    return arguments[0] if arguments else None


def _with_metadata(info: FieldInfo) -> Any:
    """A field's type; the tags of its union stand in the metadata."""
    return Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _names(name: str, info: FieldInfo) -> list[str]:
    """All spellings under which a field may stand in the YAML."""
    alias = info.validation_alias
    if isinstance(alias, AliasChoices):
        return list(dict.fromkeys([name, *(str(choice) for choice in alias.choices)]))
    return [name, alias] if isinstance(alias, str) else [name]


def _likeliest_members(found: list[_Found]) -> list[_Found]:
    """Of a union's members keep the errors of the one that the user seems to have meant.

    That is the member with the deepest errors (the value has its shape), then the fewest.
    Members that only refuse the shape of the value are kept together: the text lists them all.
    """
    for node in sorted({path for one in found for path, _ in one.choices}, key=len):
        labels: dict[str, list[_Found]] = {}
        for one in found:
            for path, label in one.choices:
                if path == node:
                    labels.setdefault(label, []).append(one)
        deep = {
            label: group
            for label, group in labels.items()
            if any(len(one.path) > len(node) for one in group)
        }
        if deep:
            kept = min(deep.values(), key=len)
            dropped = {id(one) for group in labels.values() for one in group if group is not kept}
            found = [one for one in found if id(one) not in dropped]
    return found


def _describe(group: list[_Found], *, data: Any) -> Problem:
    """The sentence for all errors at one place."""
    first = group[0]
    value = _value_at(data, first.path)
    if first.kind == _UNKNOWN_KEY:
        return Problem(first.path, _unknown_key(first, value), first.kind)
    if first.kind == "missing":
        return Problem(first.path, "is mandatory, but is missing", first.kind)
    if first.kind in ("union_tag_invalid", "union_tag_not_found"):
        return _wrong_tag(first, value)
    allowed = [_allowed(one) for one in group]
    if not all(allowed):
        return Problem(first.path, _free_text(first, value), first.kind)
    choices = list(dict.fromkeys(text for texts in allowed for text in texts))
    choices += ["null"] if first.nullable else []
    hint = near(value, _literal_values(group)) if isinstance(value, str) else ""
    text = f"must be {_either(choices)}, but is {_show(value)} instead{hint}"
    return Problem(first.path, text, first.kind)


def _unknown_key(found: _Found, value: Any) -> str:
    """The text about a key that its section does not declare."""
    section = _strip(_members(found.owner)[0])[0] if found.owner is not None else None
    known = _known_keys(section) if _is_model(section) else []
    text = f"({_show(value)}) is not a known key"
    return text + (near(found.path[-1], known) or _list_known(known))


def _known_keys(model: type[BaseModel]) -> list[str]:
    return [name for field_, info in model.model_fields.items() for name in _names(field_, info)]


def _list_known(known: Sequence[str]) -> str:
    """The part of a sentence that lists what is allowed where nothing is near."""
    if not known:
        return ""
    names = ", ".join(f"`{name}`" for name in known[:_MAX_LISTED])
    return f"; known keys are {names}{', ...' if len(known) > _MAX_LISTED else ''}"


def _wrong_tag(found: _Found, value: Any) -> Problem:
    """The text about the key that says which member of a union is meant."""
    context = found.error["ctx"]
    key = context["discriminator"].strip("'")
    path = found.path if "(" in key else (*found.path, key)
    if found.kind == "union_tag_not_found":
        for name in value if isinstance(value, dict) else ():
            if hint := near(name, [key]):
                return Problem((*found.path, name), f"is not a known key{hint}", _UNKNOWN_KEY)
        return Problem(path, "is mandatory, but is missing")
    tags = re.findall(r"'([^']*)'", context["expected_tags"])
    tag = context["tag"][:_MAX_SHOWN]
    allowed = ", ".join(f"'{tag}'" for tag in tags)
    return Problem(path, f"must be one of {allowed}, but is '{tag}' instead{near(tag, tags)}")


def _allowed(found: _Found) -> list[str]:
    """What a place may hold according to one error, or nothing where only free text tells it."""
    if found.kind in ("literal_error", "enum"):
        return _either_parts(found.error["ctx"]["expected"])
    return [_EXPECTED[found.kind]] if found.kind in _EXPECTED else []


def _either_parts(expected: str) -> list[str]:
    """Split pydantic's "'a', 'b' or 'c'"."""
    return re.split(r", | or ", expected)


def _literal_values(group: list[_Found]) -> list[str]:
    """The strings that are allowed at a place, without quotes."""
    return [text.strip("'") for one in group for text in _allowed(one) if text.startswith("'")]


def _either(choices: Sequence[str]) -> str:
    *head, last = choices
    return f"{', '.join(head)} or {last}" if head else last


def _free_text(found: _Found, value: Any) -> str:
    """The text of a validator, or pydantic's own, put behind the path."""
    text = found.error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if found.kind in ("value_error", "assertion_error"):
        return text if text.startswith("must ") else f"is refused: {text}"
    rule = re.sub(r"^\w+ should ", "must ", text)
    rule = re.sub(r" after validation|, not \d+$", "", rule)
    return f"{rule}, but is {_show(value)} instead"


def _is_nullable(annotation: Any) -> bool:
    bare, _ = _strip(annotation)
    return get_origin(bare) in (Union, UnionType) and NoneType in get_args(bare)


def _value_at(data: Any, path: Path) -> Any:
    """The value that stands at a place, or None if the place does not exist."""
    for part in path:
        if isinstance(data, dict):
            data = data.get(str(part))
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data


def _show(value: Any) -> str:
    """Write a value as YAML would, cut to a length that suits a sentence."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
