"""Names of logged values in the YAML: one that is never logged ends the run at its first look."""

import difflib
from collections.abc import Collection

from lightning.pytorch import Callback, LightningModule, Trainer

from whalesong.core.config.schema_errors import near
from whalesong.core.errors import ConfigError

_MONITORS = {
    "checkpoint_callbacks": "exp_manager.checkpoint_callback_params.monitor",
    "early_stopping_callbacks": "exp_manager.early_stopping_callback_params.monitor",
}


class LoggedNames(Callback):
    """Refuses names of values that validation does not log, before a checkpoint asks for them.

    Args:
        goals: the names in `stop_at`. As goals may be set for several families, those that are
            not logged are refused only if they look like misspelled ones.
    """

    def __init__(self, goals: Collection[str]) -> None:
        self.goals = list(goals)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare all names with what is logged.

        Raises:
            ConfigError: one of them is not; with the nearest that is.
        """
        if trainer.sanity_checking:
            return
        logged = sorted(str(name) for name in trainer.callback_metrics)
        named = {f"stop_at.{name}": name for name in self.goals if _misspelled(name, logged)}
        for callbacks, path in _MONITORS.items():
            for callback in getattr(trainer, callbacks):
                if callback.monitor is not None:
                    named[path] = callback.monitor
        for path, name in named.items():
            if name not in logged:
                listed = ", ".join(f"`{known}`" for known in logged)
                hint = near(name, logged) or f"; there are {listed}"
                raise ConfigError(f"`{path}` must be a logged value, but is '{name:.60}'{hint}")


def _misspelled(name: str, logged: Collection[str]) -> bool:
    return bool(difflib.get_close_matches(name, logged, n=1, cutoff=0.85))
