"""`ArchivedModel`: a ModelPT that is saved to and restored from one self-contained `.nemo`."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from nemo.core import ModelPT
from nemo.utils.get_rank import is_global_rank_zero
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from whalesong.core.archive import (
    Archive,
    check_state_keys,
    open_archive,
    require_class,
    write_archive,
)
from whalesong.core.archive.restoring import bounded_by, check_archived, restoring
from whalesong.core.checkpoint import AtomicCheckpointIO, is_finite, model_section
from whalesong.core.errors import ArchiveError, CheckpointError, ConfigError
from whalesong.core.external import activate_for
from whalesong.core.families import family_of
from whalesong.core.fingerprint import fingerprint
from whalesong.core.parallel import whole_state_dict
from whalesong.core.training.ema import averaged_state


class ArchivedModel(ModelPT):
    """Saving and restoring, with `assets`: the content of the files that travel in the archive.

    A subclass takes `(cfg, trainer, *, assets)`; with assets it builds its parts empty, without
    them from the pretrained parts that `cfg` names.
    """

    assets: dict[str, bytes]

    def save_to(self, save_path: str | Path) -> None:
        """Write one self-contained `.nemo`; with `model.save_slim_nemo` only what was trained.

        In a training that keeps a moving average (`exp_manager.ema`) it holds the averages. Under
        a sharding strategy every rank has to call it.

        Raises:
            ArchiveError: a weight is not finite, or the archive cannot be written.
        """
        state = {**whole_state_dict(self), **averaged_state(self)}
        if bad := _not_finite(state):
            raise ArchiveError(f"{save_path}: `{bad}` holds NaN or infinity, so it is not written.")
        slim = bool(self.cfg.get("save_slim_nemo", False))
        base = self._frozen_names() if slim else set()
        if is_global_rank_zero():
            write_archive(
                save_path,
                config=OmegaConf.to_container(self.cfg, resolve=True),
                tensors={name: tensor for name, tensor in state.items() if name not in base},
                files=self.assets,
                kind="slim" if slim else "whole",
                metadata={"base": fingerprint({name: state[name] for name in base})}
                if slim
                else None,
            )

    @classmethod
    def restore_from(
        cls,
        restore_path: str | Path,
        override_config_path: DictConfig | str | None = None,
        map_location: torch.device | str | None = None,
        strict: bool = True,
        return_config: bool = False,
        save_restore_connector: Any = None,
        trainer: Trainer | None = None,
        validate_access_integrity: bool = True,
    ) -> Any:
        """Restore from a `.nemo` without a hub, without original paths, without its code.

        Args:
            restore_path: the archive.
            override_config_path: a config (or its YAML file) merged over the one in the archive;
                for a slim archive on another machine it tells where `pretrained_llm` and
                `pretrained_asr` are now.
            map_location: device of the weights; the CPU by default.
            strict: refuse missing and unexpected weights.
            return_config: return the config only.
            save_restore_connector: NeMo's argument; an archive of ours needs none.
            trainer: Lightning's trainer.
            validate_access_integrity: NeMo's argument; checksums are always tested.

        Raises:
            ArchiveError: damaged or unsafe, of another class, other weights, another base.
            ModelNotFoundError: an external model wrote it, and that model is not there.
        """
        with restoring(restore_path), open_archive(restore_path) as archive:
            require_class(archive.config, cls, path=restore_path)
            config = OmegaConf.create(archive.config)
            if override_config_path is not None:
                config = OmegaConf.merge(config, _config(override_config_path))
            if return_config:
                return config
            activate_for(config, source=restore_path)
            check_archived(archive.config)
            return cls._from_archive(
                archive, config, map_location=map_location, strict=strict, trainer=trainer
            )

    @classmethod
    def _from_archive(
        cls,
        archive: Archive,
        config: DictConfig,
        *,
        map_location: torch.device | str | None = None,
        strict: bool = True,
        trainer: Trainer | None = None,
    ) -> Any:
        """Build the model of an open, tested archive and fill in its weights."""
        slim = archive.kind == "slim"
        if config.get("init_from") is not None:
            config.init_from = None  # the weights are here; an archive may not point at other files
        assets = None if slim else {name: archive.read_file(name) for name in archive.files}
        tensors = archive.tensors()
        with nullcontext() if slim else bounded_by(tensors):
            model = cls(cfg=config, trainer=trainer, assets=assets)
        if slim:
            tensors = {**model._checked_base(archive), **tensors}
        check_state_keys(model.state_dict(), tensors, path=archive.path, strict=strict)
        if bad := _not_finite(tensors):
            raise ArchiveError(f"{archive.path}: `{bad}` holds NaN or infinity.")
        model.load_state_dict(tensors, strict=strict)
        return model.to(map_location or "cpu").eval()

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str | None = None,
        strict: bool = True,
        trainer: Trainer | None = None,
    ) -> Any:
        """Read a Lightning checkpoint of ours without executing its pickles.

        Unlike a `.nemo` it holds weights only: the pretrained parts that its config names have to
        be where they were.

        Raises:
            CheckpointError: the file is damaged, holds more than plain data, or names a class that
                is not allowed.
        """
        checkpoint = AtomicCheckpointIO().load_checkpoint(checkpoint_path, map_location or "cpu")
        config = model_section(checkpoint, checkpoint_path)
        with restoring(checkpoint_path, error=CheckpointError):
            activate_for(config, source=checkpoint_path)
            check_archived(config)
            model = cls(config, trainer)
            model.on_load_checkpoint(checkpoint)
            model.load_state_dict(checkpoint["state_dict"], strict=strict)
            return model.to(map_location or "cpu").eval()

    def start_from(self, path: str | Path) -> None:
        """Take the weights of an archive of the same class and sizes, which training goes on from.

        Raises:
            ArchiveError: damaged or unsafe, of another class, or other weights.
            ConfigError: a slim archive.
        """
        with open_archive(path) as archive:
            require_class(archive.config, type(self), path=path)
            if archive.kind == "slim":
                raise ConfigError(f"`model.init_from` must be a whole archive, but '{path}' holds "
                                  "only what was trained.")  # fmt: skip
            tensors = archive.tensors()
            check_state_keys(self.state_dict(), tensors, path=archive.path, strict=True)
            self.load_state_dict(tensors)

    def _frozen_names(self) -> set[str]:
        """State that training leaves as it is: frozen parameters, buffers of frozen modules."""
        trained = {
            name for name, p in self.named_parameters(remove_duplicate=False) if p.requires_grad
        }
        homes = {name.rpartition(".")[0] for name in trained}
        parameters = dict(self.named_parameters(remove_duplicate=False))
        return {
            name
            for name in self.state_dict()
            if name not in trained and (name in parameters or name.rpartition(".")[0] not in homes)
        }

    def _checked_base(self, archive: Archive) -> dict[str, Tensor]:
        """The frozen weights, which a slim archive lacks, when they are those it was trained on."""
        state = self.state_dict()
        base = {name: state[name] for name in self._frozen_names()}
        given, wanted = fingerprint(base), archive.metadata.get("base")
        if given != wanted:
            raise ArchiveError(
                f"{archive.path}: was trained on frozen parts with fingerprint {wanted}, but those "
                f"of `pretrained_llm` '{self.cfg.get('pretrained_llm')}' have {given}."
            )
        return base


def load(path: str | Path, *, map_location: torch.device | str | None = None) -> ArchivedModel:
    """Restore any archive of ours as the class it names.

    Raises:
        ArchiveError: it is damaged, unsafe, or of a class that Whalesong does not know.
        ModelNotFoundError: an external model wrote it, and that model is not there.
    """
    with restoring(path), open_archive(path) as archive:
        try:
            family = family_of(str(archive.config.get("target")))
        except ConfigError as error:
            raise ArchiveError(f"{path}: target: {error}") from error
        activate_for(archive.config, source=path)
        check_archived(archive.config)
        config = OmegaConf.create(archive.config)
        return family.load_class()._from_archive(archive, config, map_location=map_location)


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor that holds NaN or infinity, if there is one."""
    return next((name for name, tensor in tensors.items() if not is_finite(tensor)), None)


def _config(source: DictConfig | Mapping[str, Any] | str | Path) -> DictConfig:
    return OmegaConf.load(source) if isinstance(source, str | Path) else OmegaConf.create(source)
