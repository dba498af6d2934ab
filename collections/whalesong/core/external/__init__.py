"""External models: found in folders and packages, composed, and imported only when they are used.

Importing this package is light: no torch, no hydra.
"""

from whalesong.core.external.activation import activate, activate_for
from whalesong.core.external.composition import ComposedJob, compose_job
from whalesong.core.external.discovery import CORE_MODELS, discover
from whalesong.core.external.model import Command, ExternalModel
from whalesong.core.external.registry import Registry

__all__ = [
    "CORE_MODELS",
    "Command",
    "ComposedJob",
    "ExternalModel",
    "Registry",
    "activate",
    "activate_for",
    "compose_job",
    "discover",
]
