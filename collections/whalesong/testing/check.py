"""`check_model`: the laws that the parts of every model keep."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from whalesong.core.contract import ContractError
from whalesong.core.language_model import LanguageModelPT
from whalesong.core.printable import one_line
from whalesong.testing.laws import LAWS
from whalesong.testing.subject import Subject, find_subject

_SEED = 20_251_122
_OTHERS_CODE = ("site-packages", "dist-packages", "importlib")


@dataclass(frozen=True)
class Report:
    """What `check_model` has looked at.

    Attributes:
        name: of the model.
        checked: the laws that it keeps.
        skipped: the laws that do not apply to it, each with the reason.
    """

    name: str
    checked: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        reasons = [f"  {law}: {reason}" for law, reason in self.skipped.items()]
        lines = [f"{self.name} keeps {len(self.checked)} laws: {', '.join(self.checked)}"]
        return "\n".join([*lines, *(["Not applicable:"] if reasons else []), *reasons])


def check_model(name: str | LanguageModelPT, *, config: Mapping[str, Any] | None = None) -> Report:
    """Check that a model keeps the contract and the laws of the house.

    Batches are made of a few examples of its own data. Nothing is trained, nothing is downloaded,
    and torch's global generator is left as it was.

    Args:
        name: a core text model, an external one that discovery finds, or a ready model, which
            stays as it is.
        config: the composed job (`model`, `data`, ...) to take instead of that of `model=NAME
            model_type=NAME`; gives a ready model its data. Built-in families of sound need one.

    Returns:
        The laws that were checked, and why others were not.

    Raises:
        ContractError: the first law that is broken, with class, method and file.
        UserError: there is no such model, or its YAML or data are wrong.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        subject = find_subject(name, config)
        report = Report(subject.name)
        for law, check in LAWS.items():
            reason = _checked(law, check, subject)
            if reason is None:
                report.checked.append(law)
            else:
                report.skipped[law] = reason
    return report


def _checked(law: str, check: Any, subject: Subject) -> str | None:
    """Check one law; the reason why it does not apply, or None.

    Raises:
        ContractError: it is broken, or the parts fail where it is checked.
    """
    try:
        with subject.evaluating():
            return check(subject)
    except ContractError as error:
        raise ContractError(f"{subject.name} breaks the law '{law}': {error}") from error
    except Exception as error:
        raise ContractError(
            f"{subject.name} fails at the law '{law}': {type(error).__name__}:"
            f" {one_line(error)} ({_place(error)})."
        ) from error


def _place(error: Exception) -> str:
    """File and line that raised, in the code of a model rather than in that of a library."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not any(part in frame.filename for part in _OTHERS_CODE)]
    parts = [frame for frame in own if Path(frame.filename).parent != Path(__file__).parent]
    frame = (parts or own or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"
