"""The data module inside a real trainer: what is trained on, and what a resumed run trains on."""

import logging

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from whalesong.core.errors import CheckpointError, ConfigError
from whalesong.core.schema import validate
from whalesong.data.config import DataConfig
from whalesong.data.datamodule import LanguageDataModule

TRAIN = {"batch_size": 5, "use_bucketing": True, "num_buckets": 2, "max_duration": 0.45}


class Recorder(LightningModule):
    """Trains on nothing and remembers every batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.validated, self.epoch_ends = [], [], []

    def training_step(self, batch, index):
        self.trained.append((batch["ids"], batch["draws"]))
        return self.weight * 1.0

    def validation_step(self, batch, index, dataloader_idx=0):
        self.validated.append((dataloader_idx, batch["ids"]))

    def on_train_epoch_end(self):
        self.epoch_ends.append(self.global_step)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture
def make_data(corpus, collator):
    def make(*, data=None, **train):
        section = {
            "train_ds": {"shar_path": str(corpus), **TRAIN, **train},
            "validation_ds": {
                "datasets": {"clean": {}, "short": {"max_duration": 0.3}},
                "shar_path": str(corpus),
                "batch_size": 7,
            },
            **(data or {}),
        }
        config = validate(DataConfig, section, path="data")
        return LanguageDataModule(config, train_collator=collator)

    return make


@pytest.fixture
def fit(make_data, tmp_path):
    """Train and return what was trained on; `save=n` writes step=k.ckpt every n steps."""

    def run(*, resume=None, save=None, train=None, data=None, callbacks=(), **trainer):
        module = Recorder()
        callbacks = list(callbacks)
        if save:
            callbacks += [
                ModelCheckpoint(
                    tmp_path, filename="{step}", every_n_train_steps=save, save_top_k=-1
                )
            ]
        options = {"max_epochs": -1, "limit_val_batches": 0, **trainer}
        Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            callbacks=callbacks,
            enable_checkpointing=bool(save),
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
            **options,
        ).fit(
            module,
            make_data(data=data, **(train or {})),
            ckpt_path=str(tmp_path / f"step={resume}.ckpt") if resume else None,
        )
        return module

    return run


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("limit", [None, 4])
def test_a_resumed_run_trains_on_what_the_whole_run_would(fit, limit, num_workers):
    whole = fit(max_steps=17).trained
    options = {"limit_train_batches": limit, "train": {"num_workers": num_workers}}
    assert fit(max_steps=9, save=1, **options).trained == whole[:9]
    for step in (3, 4, 8):
        assert fit(resume=step, max_steps=17, **options).trained == whole[step:]


def test_resume_twice_with_other_workers_and_accumulation(fit):
    whole = fit(max_steps=9, accumulate_grad_batches=2).trained
    fit(max_steps=3, save=1, accumulate_grad_batches=2)
    fit(resume=3, max_steps=6, save=1, accumulate_grad_batches=2, train={"num_workers": 1})
    assert fit(resume=6, max_steps=9, accumulate_grad_batches=2).trained == whole[12:]


class SaveEachBatch(Callback):
    """Also between the steps of the optimizer, as a validation or a signal makes it happen."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        trainer.save_checkpoint(self.folder / f"step={len(module.trained)}.ckpt")


@pytest.mark.parametrize("limit", [None, 5])
def test_a_step_that_was_under_way_begins_again(fit, tmp_path, limit):
    """Its gradients are in no checkpoint."""
    options = {"limit_train_batches": limit, "accumulate_grad_batches": 3, "max_steps": 5}
    whole = fit(callbacks=[SaveEachBatch(tmp_path)], **options)
    begins = [0, 3, 5, 8, 10] if limit else [0, 3, 6, 9, 12]
    for saved in range(1, 11):
        begin = max(step for step in begins if step <= saved)
        rest = fit(resume=saved, **options)
        assert rest.trained == whole.trained[begin:]
        assert torch.equal(rest.weight, whole.weight)


@pytest.mark.parametrize("step", [2, 5, 6, 7, 10])
def test_finite_epochs_resume_too(fit, step):
    """Five batches an epoch: before, at and after its end."""
    whole = fit(max_epochs=3, save=1).trained
    assert len(whole) == 15
    assert len({id for ids, _ in whole[:5] for id in ids}) == sum(len(i) for i, _ in whole[:5])
    assert fit(resume=step, max_epochs=3).trained == whole[step:]


@pytest.mark.parametrize("validate_too", [0, 1])
@pytest.mark.parametrize("epochs", [{"max_epochs": 3}, {"max_steps": 15, "limit_train_batches": 5}])
def test_the_ends_of_epochs_are_where_they_were(fit, epochs, validate_too):
    """Epochs of five batches; the checkpoints are those of batch ends."""
    whole = fit(save=1, limit_val_batches=validate_too, num_sanity_val_steps=0, **epochs)
    for step in (4, 5, 9, 10):
        rest = fit(resume=step, limit_val_batches=validate_too, **epochs)
        assert rest.trained == whole.trained[step:]
        assert rest.epoch_ends == [end for end in whole.epoch_ends if end >= step]


def test_validation_between_steps_changes_nothing(fit):
    plain = fit(max_steps=8).trained
    module = fit(
        max_steps=8, val_check_interval=2, check_val_every_n_epoch=None, limit_val_batches=1.0
    )
    assert module.trained == plain


def test_named_validation_sets_see_every_cut_once_in_order(fit, make_data, corpus):
    data = make_data()
    assert data.val_names == ["clean", "short"] and data.test_names == []
    module = fit(max_steps=4, val_check_interval=4, check_val_every_n_epoch=None,
                 limit_val_batches=1.0, num_sanity_val_steps=0)  # fmt: skip
    clean = [id for index, ids in module.validated if index == 0 for id in ids]
    short = [id for index, ids in module.validated if index == 1 for id in ids]
    assert clean == [f"utt{i}" for i in range(24)]
    assert 0 < len(short) < 24 and short == [id for id in clean if id in short]


def test_overfit_batches_trains_on_the_same_batches(fit):
    trained = fit(max_steps=6, overfit_batches=2).trained
    assert trained[:2] == trained[2:4] == trained[4:]


def test_overfitting_validates_on_the_very_batches_it_trains_on(fit):
    often = {"val_check_interval": 2, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    module = fit(max_steps=4, overfit_batches=2, **often)
    trained = [ids for ids, _ in module.trained]
    assert module.validated == [(0, ids) for ids in trained]
    alone = fit(max_steps=4, overfit_batches=2, data={"validation_ds": None}, **often)
    assert alone.validated == module.validated


def test_overfitting_validates_with_the_collator_of_validation(make_data, collator):
    class Marked(type(collator)):
        """Tells that it was used."""

        def __call__(self, loaded):
            return {**super().__call__(loaded), "marked": True}

    data = make_data()
    data.validation_collator = Marked()
    assert len(data.val_dataloader()) == 2
    data.trainer = Trainer(overfit_batches=1, accelerator="cpu", logger=False)
    train, [validation] = data.train_dataloader(), data.val_dataloader()
    trained, validated = next(iter(train)), next(iter(validation))
    assert validated.pop("marked") and "marked" not in trained
    assert validated == trained


def test_a_changed_data_section_is_refused_in_one_line(fit):
    fit(max_steps=2, save=1)
    for changes, key in [({"batch_size": 4}, "batch_size"), ({"seed": 3}, "seed")]:
        with pytest.raises(CheckpointError, match=rf"with another `data.train_ds.{key}`: undo"):
            fit(resume=2, max_steps=4, train=changes)
    with pytest.raises(CheckpointError, match="another `data.on_bad_cut`"):
        fit(resume=2, max_steps=4, data={"on_bad_cut": "skip"})
    fit(resume=2, max_steps=4, train={"num_workers": 1, "worker_timeout": 60.0})


def test_a_random_order_cannot_be_resumed(fit, caplog):
    caplog.set_level(logging.WARNING)
    fit(max_steps=2, save=1, train={"shard_seed": "trng"})
    assert "`data.train_ds.shard_seed` is trng: this run cannot be resumed exactly." in caplog.text
    with pytest.raises(CheckpointError, match="`data.train_ds.shard_seed` is trng"):
        fit(resume=2, max_steps=4, train={"shard_seed": "trng"})


def test_training_needs_data(collator):
    data = LanguageDataModule(DataConfig(), train_collator=collator)
    with pytest.raises(ConfigError, match="`data.train_ds` is mandatory"):
        data.train_dataloader()
    assert data.val_dataloader() == []
